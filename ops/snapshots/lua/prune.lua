-- Forget old snapshots: all but the newest, a ladder of older ones, those that a name points at, and the one that
-- `rollback` would go to. A blob goes with the last snapshot that refers to it.
-- KEYS  1 epoch, 2 owner, 3 head, 4 stable, 5 pins, 6 versions, 7 refs, 8 events, 9 stable_log
-- ARGV  1 owner uuid ("" = an operator: no fence), 2 epoch, 3 how many of the newest stay, 4 prefix of snapshot keys,
--       5 prefix of blob keys, 6 seconds that an unused blob stays for readers that are just loading it, 7 now (ms),
--       8 rungs of the ladder for each doubling of age (0 = no ladder), 9 "1" = change nothing, only answer
-- Returns {"OK", forgotten versions, newest first ...} or {"STALE", epoch of the server}.
if ARGV[1] ~= '' then
  local epoch = tonumber(redis.call('GET', KEYS[1]) or '0')
  if epoch ~= tonumber(ARGV[2]) or redis.call('HGET', KEYS[2], 'uuid') ~= ARGV[1] then
    return {'STALE', epoch}
  end
end
local keep = {}
for _, key in ipairs({KEYS[3], KEYS[4]}) do
  local version = redis.call('GET', key)
  if version then
    keep[version] = true
  end
end
for _, version in ipairs(redis.call('HVALS', KEYS[5])) do
  keep[version] = true
end
for _, version in ipairs(redis.call('LRANGE', KEYS[9], 0, -1)) do
  local row = redis.call('HMGET', ARGV[4] .. version, 'blob_sha256', 'abandoned')
  if row[1] and not row[2] and redis.call('EXISTS', ARGV[5] .. row[1]) == 1 then
    keep[version] = true
    break
  end
end

local versions = redis.call('ZRANGE', KEYS[6], 0, -1)
local newest = tonumber(versions[#versions] or '0')
local older = #versions - tonumber(ARGV[3])
local rungs = tonumber(ARGV[8])
local taken = {}
for i = 1, older do
  -- The ladder keeps the first of each box of consecutive numbers. A box is as wide as its age, rounded down to a
  -- power of two, divided by the rungs. Boxes only ever merge, and the first of the merged one is the first of a part,
  -- so that pruning often and pruning seldom leave nearly the same: rungs or one more for each doubling of age.
  local version = tonumber(versions[i])
  local width = 1
  while width * 2 < newest - version do
    width = width * 2
  end
  if rungs > 0 and not redis.call('HGET', ARGV[4] .. versions[i], 'abandoned') then
    local box = string.format('%d:%d', width, math.floor(version / math.max(1, width / rungs)))
    if not taken[box] then
      taken[box] = true
      keep[versions[i]] = true
    end
  end
end

local forgotten = {}
for i = older, 1, -1 do
  local version = versions[i]
  if not keep[version] then
    forgotten[#forgotten + 1] = version
    if ARGV[9] ~= '1' then
      local blob = redis.call('HGET', ARGV[4] .. version, 'blob_sha256')
      redis.call('DEL', ARGV[4] .. version)
      redis.call('ZREM', KEYS[6], version)
      if blob and redis.call('HINCRBY', KEYS[7], blob, -1) <= 0 then
        redis.call('HDEL', KEYS[7], blob)
        redis.call('EXPIRE', ARGV[5] .. blob, tonumber(ARGV[6]))
      end
    end
  end
end
if #forgotten > 0 and ARGV[9] ~= '1' then
  redis.call('XADD', KEYS[8], 'MAXLEN', '~', 10000, '*', 'kind', 'prune', 'versions', table.concat(forgotten, ','),
    'time_ms', ARGV[7])
end
local answer = {'OK'}
for _, version in ipairs(forgotten) do
  answer[#answer + 1] = tonumber(version)
end
return answer
