-- Publish one snapshot, whole or not at all. The blob is already there, under its own digest.
-- KEYS  1 epoch, 2 owner, 3 counter, 4 head, 5 stable, 6 versions, 7 events, 8 refs, 9 blob, 10 stable_log
-- ARGV  1 owner uuid, 2 epoch, 3 samples, 4 digest, 5 "1" when the health gate passed, 6 blob digest, 7 blob bytes,
--       8 lowest version number, 9 prefix of snapshot keys, 10 channel, 11 now (ms),
--       12 generations as "k:g,k:g" in the order of k, without those that are 0, 13.. fields and values
-- Returns {"OK", version, parent or "", stable moved (0 or 1), abandoned "v,v", re-seeded since the parent "k:g,k:g"},
--         {"SAME", version}, {"STALE", epoch of the server}, {"LOST", epoch of the server} or {"NOBLOB"}.
local epoch = tonumber(redis.call('GET', KEYS[1]) or '0')
local mine = tonumber(ARGV[2])
if epoch < mine then
  return {'LOST', epoch}
end
if epoch > mine or redis.call('HGET', KEYS[2], 'uuid') ~= ARGV[1] then
  return {'STALE', epoch}
end

local samples = tonumber(ARGV[3])
local head = redis.call('GET', KEYS[4])
local parent = ''
local abandoned = {}
local at = head
while at and at ~= '' do
  local row = redis.call('HMGET', ARGV[9] .. at, 'samples', 'digest', 'parent')
  if not row[1] then
    break -- pruned
  end
  if at == head and tonumber(row[1]) == samples and row[2] == ARGV[4] then
    return {'SAME', tonumber(head)} -- it was published before and the answer was lost
  end
  if tonumber(row[1]) < samples then
    parent = at
    break
  end
  -- It was published after the checkpoint from which the learner went on: its line ends here.
  abandoned[#abandoned + 1] = at
  at = row[3]
end

if redis.call('STRLEN', KEYS[9]) ~= tonumber(ARGV[7]) then
  return {'NOBLOB'}
end

local number = math.max(tonumber(redis.call('GET', KEYS[3]) or '0'), tonumber(ARGV[8])) + 1
local version = string.format('%d', number)
for _, old in ipairs(abandoned) do
  redis.call('HSET', ARGV[9] .. old, 'abandoned', '1')
end
if #abandoned > 0 then
  redis.call('XADD', KEYS[7], 'MAXLEN', '~', 10000, '*', 'kind', 'rewind', 'version', version, 'samples', ARGV[3],
    'abandoned', table.concat(abandoned, ','), 'time_ms', ARGV[11])
end
redis.call('SET', KEYS[3], version)
local fields = {'version', version, 'parent', parent, 'epoch', ARGV[2], 'samples', ARGV[3], 'digest', ARGV[4],
  'blob_sha256', ARGV[6], 'blob_bytes', ARGV[7], 'healthy', ARGV[5], 'created_ms', ARGV[11], 'generations', ARGV[12]}
for i = 13, #ARGV do
  fields[#fields + 1] = ARGV[i]
end
redis.call('HSET', ARGV[9] .. version, unpack(fields))
redis.call('PERSIST', KEYS[9])
redis.call('HINCRBY', KEYS[8], ARGV[6], 1)
redis.call('ZADD', KEYS[6], version, version)
redis.call('SET', KEYS[4], version)
local moved = 0
if ARGV[5] == '1' then
  local before = redis.call('GET', KEYS[5])
  if before then
    redis.call('LPUSH', KEYS[10], before)
    redis.call('LTRIM', KEYS[10], 0, 99)
  end
  redis.call('SET', KEYS[5], version)
  moved = 1
end
redis.call('XADD', KEYS[7], 'MAXLEN', '~', 10000, '*', 'kind', 'publish', 'version', version, 'samples', ARGV[3],
  'digest', ARGV[4], 'stable', tostring(moved), 'time_ms', ARGV[11])
-- Lineage: index k of the parent and of this one are two things when the prototype was re-seeded in between. Where the
-- parent's generations are not known (it was pruned, or the server lost it) nothing is said.
local reseeded = {}
local known = parent ~= '' and redis.call('HGET', ARGV[9] .. parent, 'generations')
if known and known ~= ARGV[12] then
  local before = {}
  for k, generation in string.gmatch(known, '(%d+):(%d+)') do
    before[k] = generation
  end
  for k, generation in string.gmatch(ARGV[12], '(%d+):(%d+)') do
    if before[k] ~= generation then
      reseeded[#reseeded + 1] = k .. ':' .. generation
    end
  end
end
if #reseeded > 0 then
  redis.call('XADD', KEYS[7], 'MAXLEN', '~', 10000, '*', 'kind', 'reseed', 'version', version, 'parent', parent,
    'count', tostring(#reseeded), 'generations', table.concat(reseeded, ','), 'time_ms', ARGV[11])
end
redis.call('PUBLISH', ARGV[10], version)
return {'OK', number, parent, moved, table.concat(abandoned, ','), table.concat(reseeded, ',')}
