-- Forgets a request that is in flight; an answer stays. KEYS: request.
local known = redis.call('GET', KEYS[1])
if known and string.sub(known, -1) == '-' then redis.call('DEL', KEYS[1]) end
return 0
