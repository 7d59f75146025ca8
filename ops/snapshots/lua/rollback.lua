-- Move `stable` back to where it was before; versions that are gone, without blob, or abandoned are passed over.
-- KEYS  1 stable, 2 stable_log, 3 events, 4 versions
-- ARGV  1 prefix of snapshot keys, 2 channel, 3 now (ms), 4 who, 5 prefix of blob keys, 6 version that was verified
-- Returns {"OK", version, version before}, {"WOULD", version} where it would go to another one than was verified,
--         and nothing was moved, or {"NONE", stable or ""}.
local before = redis.call('GET', KEYS[1])
if not before then
  return {'NONE', ''}
end
local function usable(version)
  local row = redis.call('HMGET', ARGV[1] .. version, 'blob_sha256', 'abandoned')
  return version ~= before and row[1] and not row[2] and redis.call('EXISTS', ARGV[5] .. row[1]) == 1
end
local target, passed = nil, 0
while not target do
  local version = redis.call('LINDEX', KEYS[2], passed)
  if not version then
    break
  end
  passed = passed + 1
  if usable(version) then
    target = version
  end
end
if not target then
  -- Nothing is known of earlier moves, or all of it is gone: the newest healthy one before.
  for _, version in ipairs(redis.call('ZREVRANGEBYSCORE', KEYS[4], '(' .. before, '-inf')) do
    if usable(version) and redis.call('HGET', ARGV[1] .. version, 'healthy') == '1' then
      target = version
      break
    end
  end
end
if not target then
  return {'NONE', before}
end
if ARGV[6] ~= target then
  return {'WOULD', tonumber(target)}
end
redis.call('LTRIM', KEYS[2], passed, -1)
redis.call('SET', KEYS[1], target)
redis.call('XADD', KEYS[3], 'MAXLEN', '~', 10000, '*', 'kind', 'rollback', 'version', target, 'before', before,
  'who', ARGV[4], 'time_ms', ARGV[3])
redis.call('PUBLISH', ARGV[2], target)
return {'OK', tonumber(target), tonumber(before)}
