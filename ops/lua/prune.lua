-- Forget all but the newest snapshots and those that a name points at.
-- KEYS  1 epoch, 2 owner, 3 head, 4 stable, 5 pins, 6 versions, 7 refs, 8 events
-- ARGV  1 owner uuid ("" = an operator: no fence), 2 epoch, 3 how many of the newest stay, 4 prefix of snapshot keys,
--       5 prefix of blob keys, 6 seconds that an unused blob stays for readers that are just loading it, 7 now (ms)
-- Returns {"OK", forgotten versions ...} or {"STALE", epoch of the server}.
if ARGV[1] ~= '' then
  local epoch = tonumber(redis.call('GET', KEYS[1]) or '0')
  if epoch ~= tonumber(ARGV[2]) or redis.call('HGET', KEYS[2], 'uuid') ~= ARGV[1] then
    return {'STALE', epoch}
  end
end
local named = {}
for _, key in ipairs({KEYS[3], KEYS[4]}) do
  local version = redis.call('GET', key)
  if version then
    named[version] = true
  end
end
for _, version in ipairs(redis.call('HVALS', KEYS[5])) do
  named[version] = true
end
local forgotten = {}
for _, version in ipairs(redis.call('ZREVRANGE', KEYS[6], tonumber(ARGV[3]), -1)) do
  if not named[version] then
    local blob = redis.call('HGET', ARGV[4] .. version, 'blob_sha256')
    redis.call('DEL', ARGV[4] .. version)
    redis.call('ZREM', KEYS[6], version)
    if blob and redis.call('HINCRBY', KEYS[7], blob, -1) <= 0 then
      redis.call('HDEL', KEYS[7], blob)
      redis.call('EXPIRE', ARGV[5] .. blob, tonumber(ARGV[6]))
    end
    forgotten[#forgotten + 1] = version
  end
end
if #forgotten > 0 then
  redis.call('XADD', KEYS[8], 'MAXLEN', '~', 10000, '*', 'kind', 'prune', 'versions', table.concat(forgotten, ','),
    'time_ms', ARGV[7])
end
local answer = {'OK'}
for _, version in ipairs(forgotten) do
  answer[#answer + 1] = tonumber(version)
end
return answer
