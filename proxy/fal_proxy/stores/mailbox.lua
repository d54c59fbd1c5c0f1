-- Every operation of RedisMailbox, each one atomic step, as mailbox_state.py. The keys are listed in mailbox_redis.py.
--
-- ARGV: a moment that replaces Redis' own time (tests only; else empty), the operation, its arguments in MessagePack, and
-- a body as it is. A reply that holds events is a list of one's meta, its body, the next one's meta, ...
-- CLAIM, EVENT, HELD, ANSWER_BYTES, EVENT_BYTES, MOST_BYTES, MOST_PER_OWNER and AT_ONCE come from Python.

local DAY = 24 * 3600
local P = 'fal-proxy:'
local EVENTS, IDS, SUMS = P .. 'events', P .. 'event-ids', P .. 'event-sums'
local NUMBERS, ENDS, DEAD = P .. 'event-numbers', P .. 'event-ends', P .. 'dead-letters'
local IDLE, HOSTS = P .. 'idle', P .. 'delivery-hosts'
local call = redis.call

local now = tonumber(ARGV[1])
if not now then
  local time = call('TIME')
  now = time[1] + time[2] / 1000000
end

local function exactly(number)
  return string.format('%.17g', number)
end

local function body_of(number)
  return P .. 'event-body:' .. number
end

local function idle_of(meta)
  return IDLE .. ':' .. meta.flooder
end

local function due_at(meta)
  return P .. 'deliveries:' .. meta.host
end

local function load(number)
  local raw = call('HGET', EVENTS, number)
  return raw and cmsgpack.unpack(raw) or nil
end

local function keep(meta)
  call('HSET', EVENTS, meta.number, cmsgpack.pack(meta))
end

-- All of them end together, a day after the last event can be of use to anybody.
local function add(index, score, member)
  call('ZADD', index, exactly(score), member)
  call('EXPIRE', index, HELD + DAY)
end

local function total(name, more)
  return call('HINCRBY', SUMS, name, exactly(more))
end

local drop

local function stage(meta)
  local number = meta.number
  add(ENDS, meta.received_at + (meta.stage == 'idle' and EVENT or HELD), number)
  if meta.stage == 'waiting' then
    total('waiting', 1)
    total('waiting_bytes', meta.size)
    add(due_at(meta), meta.due, number)
    call('SADD', HOSTS, meta.host)
    call('EXPIRE', HOSTS, HELD + DAY)
  elseif meta.stage == 'dead' then
    add(DEAD, meta.given_up_at, number)
  else
    add(idle_of(meta), number, number)
    call('ZINCRBY', IDLE, exactly(-meta.size), meta.flooder)
    call('EXPIRE', IDLE, HELD + DAY)
    if call('ZCARD', idle_of(meta)) > MOST_PER_OWNER then
      drop(call('ZRANGE', idle_of(meta), 0, 0)[1])
    end
  end
end

local function unstage(meta)
  if meta.stage == 'waiting' then
    total('waiting', -1)
    total('waiting_bytes', -meta.size)
    call('ZREM', due_at(meta), meta.number)
  elseif meta.stage == 'dead' then
    call('ZREM', DEAD, meta.number)
  else
    call('ZREM', idle_of(meta), meta.number)
    if call('EXISTS', idle_of(meta)) == 1 then
      call('ZINCRBY', IDLE, exactly(meta.size), meta.flooder)
    else
      call('ZREM', IDLE, meta.flooder)
    end
  end
end

drop = function(number)
  local meta = load(number)
  if meta then
    unstage(meta)
    total('bytes', -meta.size)
    call('HDEL', EVENTS, number)
    call('HDEL', IDS, meta.request_id)
    for _, owner in ipairs(meta.owners) do
      call('ZREM', P .. 'events-of:' .. owner, number)
    end
  end
  call('DEL', body_of(number))
  call('ZREM', NUMBERS, number)
  call('ZREM', ENDS, number)
end

local function restage(meta, to)
  unstage(meta)
  meta.stage = to
  keep(meta)
  stage(meta) -- may drop it
end

local function expire()
  for _, number in ipairs(call('ZRANGEBYSCORE', ENDS, '-inf', exactly(now), 'LIMIT', 0, AT_ONCE)) do
    drop(number)
  end
end

-- As many as one answer may hold, but the first; what has lost its body, ended by Redis itself, is gone.
local function with_bodies(metas)
  local answer, size, taken = {}, 0, 0
  for _, meta in ipairs(metas) do
    local body = call('GET', body_of(meta.number))
    if body then
      size = size + #body
      if taken > 0 and size > ANSWER_BYTES then
        break
      end
      answer[#answer + 1] = cmsgpack.pack(meta)
      answer[#answer + 1] = body
      taken = taken + 1
      meta.taken = true
    else
      drop(meta.number)
    end
  end
  return answer
end

local operations = {}

function operations.file(event)
  local body = ARGV[4]
  if call('HEXISTS', IDS, event.request_id) == 1 then
    return false
  end
  event.size = #body + EVENT_BYTES
  if tonumber(call('HGET', SUMS, 'waiting_bytes') or 0) + event.size > MOST_BYTES then
    return redis.error_reply('FULL the mailbox is full of deliveries that wait')
  end
  while tonumber(call('HGET', SUMS, 'bytes') or 0) + event.size > MOST_BYTES do
    local heaviest = call('ZRANGE', IDLE, 0, 0)[1]
    drop(heaviest and call('ZRANGE', IDLE .. ':' .. heaviest, 0, 0)[1] or call('ZRANGE', DEAD, 0, 0)[1])
  end
  local last = tonumber(call('HGET', SUMS, 'number') or 0)
  local number = exactly(math.max(last + 1, math.floor(now * 1000)))
  event.number, event.received_at, event.due = number, now, now
  event.attempt, event.given_up_at, event.reason = 0, 0, ''
  event.stage = event.forward_url ~= '' and 'waiting' or 'idle'
  call('SET', body_of(number), body, 'EX', HELD + DAY)
  call('HSET', SUMS, 'number', number)
  call('HSET', IDS, event.request_id, number)
  keep(event)
  add(NUMBERS, number, number)
  for _, owner in ipairs(event.owners) do
    add(P .. 'events-of:' .. owner, number, number)
  end
  total('bytes', event.size)
  stage(event)
  for _, name in ipairs({ EVENTS, IDS, SUMS }) do
    call('EXPIRE', name, HELD + DAY)
  end
  call('PUBLISH', P .. 'events', cmsgpack.pack({ number, event.request_id, event.owners }))
  return { number, exactly(now) }
end

function operations.filed(request_id)
  return call('HEXISTS', IDS, request_id)
end

function operations.since(question)
  local identities, after, limit = unpack(question)
  -- A number is never less than its milliseconds: most of what is too old need not be looked at.
  local lowest = '(' .. exactly(math.max(after, math.floor((now - EVENT) * 1000) - 1))
  local found, metas = {}, {}
  for _, identity in ipairs(identities) do
    local offset, mine = 0, 0
    repeat
      local page = call('ZRANGEBYSCORE', P .. 'events-of:' .. identity, lowest, '+inf', 'LIMIT', offset, limit)
      for _, number in ipairs(page) do
        local meta = load(number)
        if meta and meta.received_at + EVENT > now and mine < limit then
          mine = mine + 1
          if not found[number] then
            found[number] = true
            metas[#metas + 1] = meta
          end
        end
      end
      offset = offset + limit
    until #page < limit or mine >= limit
  end
  table.sort(metas, function(a, b) return tonumber(a.number) < tonumber(b.number) end)
  for at = #metas, limit + 1, -1 do
    metas[at] = nil
  end
  return with_bodies(metas)
end

function operations.before_newest(question)
  local identities, count = unpack(question)
  local found, numbers = {}, {}
  for _, identity in ipairs(identities) do
    for _, number in ipairs(call('ZREVRANGE', P .. 'events-of:' .. identity, 0, count)) do
      local meta = load(number)
      if not found[number] and meta and meta.received_at + EVENT > now then
        found[number] = true
        numbers[#numbers + 1] = number
      end
    end
  end
  table.sort(numbers, function(a, b) return tonumber(a) > tonumber(b) end)
  return numbers[count + 1] or '0'
end

function operations.claim(question)
  local limit, per_host, busy = unpack(question)
  local metas = {}
  for _, host in ipairs(call('SMEMBERS', HOSTS)) do
    local room = math.min(per_host - (busy[host] or 0), limit)
    local queue = P .. 'deliveries:' .. host
    if room > 0 then
      local due = call('ZRANGEBYSCORE', queue, '-inf', exactly(now), 'WITHSCORES', 'LIMIT', 0, room)
      for at = 1, #due, 2 do
        local meta = load(due[at])
        meta.due = tonumber(due[at + 1])
        metas[#metas + 1] = meta
      end
    end
    if call('EXISTS', queue) == 0 then
      call('SREM', HOSTS, host)
    end
  end
  table.sort(metas, function(a, b)
    return a.due < b.due or a.due == b.due and tonumber(a.number) < tonumber(b.number)
  end)
  for at = #metas, limit + 1, -1 do
    metas[at] = nil
  end
  local answer = with_bodies(metas)
  for _, meta in ipairs(metas) do
    if meta.taken then
      add(due_at(meta), now + CLAIM, meta.number)
    end
  end
  return answer
end

function operations.delivered(number)
  local meta = load(number)
  if meta and meta.stage ~= 'idle' then
    restage(meta, 'idle')
  end
end

function operations.failed(failure)
  local number, reason, retry = unpack(failure)
  local meta = load(number)
  if not meta or meta.stage ~= 'waiting' then
    return
  end
  meta.attempt, meta.reason = meta.attempt + 1, reason
  if retry then
    keep(meta)
    add(due_at(meta), now + retry, number)
  else
    meta.given_up_at = now
    restage(meta, 'dead')
  end
end

function operations.dead_letters(limit)
  local letters = {}
  for _, number in ipairs(limit > 0 and call('ZREVRANGE', DEAD, 0, limit - 1) or {}) do
    letters[#letters + 1] = cmsgpack.pack(load(number))
  end
  return letters
end

function operations.revive(number)
  local meta = load(number)
  if not meta or meta.stage ~= 'dead' then
    return 0
  end
  meta.attempt, meta.due, meta.reason = 0, now, ''
  restage(meta, 'waiting')
  return 1
end

function operations.standing()
  return { call('ZCARD', NUMBERS), tonumber(call('HGET', SUMS, 'waiting') or 0), call('ZCARD', DEAD) }
end

function operations.newest()
  return call('HGET', SUMS, 'number') or '0'
end

function operations.notices(question)
  local after, limit = unpack(question)
  local notices = {}
  for _, number in ipairs(call('ZRANGEBYSCORE', NUMBERS, '(' .. exactly(after), '+inf', 'LIMIT', 0, limit)) do
    local meta = load(number)
    notices[#notices + 1] = cmsgpack.pack({ number, meta.request_id, meta.owners })
  end
  return notices
end

expire()
return operations[ARGV[2]](cmsgpack.unpack(ARGV[3])) or false
