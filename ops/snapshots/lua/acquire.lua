-- Take the fencing epoch of a run: whoever holds an older one is refused by publish.lua from now on.
-- KEYS  epoch, owner, counter, events
-- ARGV  1 owner uuid, 2 when this learner started (ms), 3 lowest epoch, 4 lowest version number,
--       5 "start" (a learner starts: always wins) or "again" (after a reconnect: must not push out a newer learner),
--       6 who (host:pid), 7 now (ms)
-- Returns {"OK", epoch, last version} or {"STALE", epoch of the server}.
local epoch = tonumber(redis.call('GET', KEYS[1]) or '0')
local lowest = tonumber(ARGV[3])
if ARGV[5] == 'again' then
  if epoch > lowest then
    return {'STALE', epoch}
  end
  -- A failover may have lost our epoch and given the same number to another learner: the one that started later stays.
  local owner = redis.call('HMGET', KEYS[2], 'uuid', 'started_ms')
  if epoch == lowest and owner[1] and owner[1] ~= ARGV[1] and tonumber(owner[2]) > tonumber(ARGV[2]) then
    return {'STALE', epoch}
  end
end
epoch = math.max(epoch, lowest) + 1
redis.call('SET', KEYS[1], string.format('%d', epoch))
redis.call('HSET', KEYS[2], 'uuid', ARGV[1], 'started_ms', ARGV[2], 'who', ARGV[6])
local counter = math.max(tonumber(redis.call('GET', KEYS[3]) or '0'), tonumber(ARGV[4]))
redis.call('SET', KEYS[3], string.format('%d', counter))
redis.call('XADD', KEYS[4], 'MAXLEN', '~', 10000, '*', 'kind', 'epoch', 'epoch', string.format('%d', epoch),
  'who', ARGV[6], 'time_ms', ARGV[7])
return {'OK', epoch, counter}
