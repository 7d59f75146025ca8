-- Give a name to a version, which then stays, or take the name away.
-- KEYS  1 pins, 2 events
-- ARGV  1 name, 2 version ("" = take the name away), 3 prefix of snapshot keys, 4 channel, 5 now (ms), 6 who
-- Returns {"OK", version before or ""} or {"NONE"}.
local before = redis.call('HGET', KEYS[1], ARGV[1])
if ARGV[2] == '' then
  if not before then
    return {'NONE'}
  end
  redis.call('HDEL', KEYS[1], ARGV[1])
elseif redis.call('EXISTS', ARGV[3] .. ARGV[2]) == 0 then
  return {'NONE'}
else
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
end
local kind = ARGV[2] == '' and 'unpin' or 'pin'
redis.call('XADD', KEYS[2], 'MAXLEN', '~', 10000, '*', 'kind', kind, 'name', ARGV[1],
  'version', ARGV[2] == '' and before or ARGV[2], 'before', before or '', 'who', ARGV[6], 'time_ms', ARGV[5])
redis.call('PUBLISH', ARGV[4], ARGV[2] == '' and before or ARGV[2])
return {'OK', before or ''}
