-- Marks a request as in flight and takes a token of each bucket: all of it, or nothing.
-- KEYS: request, unless the mark is empty; buckets. ARGV: mark, its life in milliseconds; burst and window in
--       microseconds of each bucket.
-- Returns {0, what is known of the request}; {1, whole tokens left and microseconds until the next, of each bucket};
-- or {2, which bucket is empty from 0, its whole tokens left, microseconds until the next}.
-- A bucket holds the time at which it would be full again if nothing more was taken (GCRA, ITU-T I.371): a token moves
-- it on by the time in which one flows in, and is there while that is no further away than the window.
local known = redis.call('MGET', unpack(KEYS))
local first = 1
if ARGV[1] ~= '' then
    if known[1] and string.match(known[1], '^%d+ %S+ [01] %S+$') then return {0, known[1]} end
    first = 2
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local answer, full_at = {1}, {}
for key = first, #KEYS do
    local argument = 3 + 2 * (key - first)
    local burst, window = tonumber(ARGV[argument]), tonumber(ARGV[argument + 1])
    local token = window / burst
    local after = math.max(now, tonumber(known[key] or '') or now) + token
    local missing = after - now - window
    if missing > 0 then return {2, key - first, 0, math.ceil(missing)} end
    full_at[key] = after
    answer[#answer + 1] = math.floor(-missing / token + 0.000001)
    answer[#answer + 1] = math.max(0, math.ceil(missing + token))
end
if first == 2 then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
for key = first, #KEYS do
    local life = math.ceil((full_at[key] - now) / 1000) + 1000
    redis.call('SET', KEYS[key], string.format('%.0f', full_at[key]), 'PX', life)
end
return answer
