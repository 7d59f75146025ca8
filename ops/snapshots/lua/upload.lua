-- Put the bytes of a blob under their own digest, before a snapshot names it; it expires unless one comes to.
-- Another learner may have published the same bytes meanwhile: what a snapshot names must not expire.
-- KEYS  1 blob, 2 refs
-- ARGV  1 bytes, 2 their digest, 3 seconds that they stay while no snapshot names them
-- Returns {"OK"}.
if redis.call('STRLEN', KEYS[1]) ~= #ARGV[1] then
  redis.call('SET', KEYS[1], ARGV[1])
end
if redis.call('HEXISTS', KEYS[2], ARGV[2]) == 0 then
  redis.call('EXPIRE', KEYS[1], tonumber(ARGV[3]))
end
return {'OK'}
