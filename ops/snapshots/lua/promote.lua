-- Move `stable` to a version, by hand.
-- KEYS  1 stable, 2 stable_log, 3 events
-- ARGV  1 version, 2 "1" = also one that failed the health gate, or was abandoned, 3 prefix of snapshot keys,
--       4 prefix of blob keys, 5 channel, 6 now (ms), 7 who
-- Returns {"OK", version before or ""}, {"SAME"}, {"NONE"}, {"NOBLOB"}, {"UNHEALTHY"} or {"ABANDONED"}.
local row = redis.call('HMGET', ARGV[3] .. ARGV[1], 'blob_sha256', 'healthy', 'abandoned')
if not row[1] then
  return {'NONE'}
end
if redis.call('EXISTS', ARGV[4] .. row[1]) == 0 then
  return {'NOBLOB'}
end
local before = redis.call('GET', KEYS[1])
if before == ARGV[1] then
  return {'SAME'}
end
if ARGV[2] ~= '1' then
  if row[2] ~= '1' then
    return {'UNHEALTHY'}
  end
  if row[3] then
    return {'ABANDONED'}
  end
end
if before then
  redis.call('LPUSH', KEYS[2], before)
  redis.call('LTRIM', KEYS[2], 0, 99)
end
redis.call('SET', KEYS[1], ARGV[1])
redis.call('XADD', KEYS[3], 'MAXLEN', '~', 10000, '*', 'kind', 'promote', 'version', ARGV[1], 'before', before or '',
  'forced', ARGV[2], 'who', ARGV[7], 'time_ms', ARGV[6])
redis.call('PUBLISH', ARGV[5], ARGV[1])
return {'OK', before or ''}
