-- The operations of RedisStore, on top of store.lua. Each takes its decoded argument and returns its reply.
-- Returns a refusal or nothing; leaves with each budget what opening an entry needs.
local function judge(ask, windows)
  for at, rate in ipairs(ask.rates) do
    local window = window_of(rate, windows)
    if window.total >= rate[2] then
      local states = {}
      for told = 1, ask.told or #ask.rates do
        local each = ask.rates[told]
        states[told] = rate_state(window_of(each, windows), each[2], each[3])
      end
      local seconds = rate_state(window, rate[2], rate[3])[2]
      return { denied = 'rate_limited', at = at - 1, retry_seconds = seconds, rates = states }
    end
  end
  for at, limit in ipairs(ask.concurrency) do
    if call('SCARD', P .. 'slots:' .. limit[1]) >= limit[2] then
      return { denied = 'concurrency_limited', at = at - 1, retry_seconds = CONCURRENCY_RETRY }
    end
  end
  for at, budget in ipairs(ask.budgets) do
    budget.purse, budget.ends = purse_of(budget)
    local held = call('HMGET', budget.purse, 'spent', 'reserved')
    budget.begins = not held[2]
    if tonumber(held[1] or 0) + tonumber(held[2] or 0) + ask.amount_microusd > budget[2] then
      return { denied = 'budget_exhausted', at = at - 1, retry_seconds = budget.ends and budget.ends - now }
    end
  end
end

local function open(ask)
  local entry = {
    amount = ask.amount_microusd, price = ask.price, purses = {}, slots = {},
    request_id = '', outcome = '', charged = 0, payer = ask.payer,
  }
  for _, limit in ipairs(ask.concurrency) do
    local slots = P .. 'slots:' .. limit[1]
    call('SADD', slots, ask.entry_id)
    call('EXPIRE', slots, DAY + 2 * HOUR)
    entry.slots[#entry.slots + 1] = slots
  end
  for _, budget in ipairs(ask.budgets) do
    call('HINCRBY', budget.purse, 'reserved', exactly(ask.amount_microusd))
    if budget.begins and budget.ends then
      call('PEXPIRE', budget.purse, math.ceil((budget.ends + PURSE_GRACE - now) * 1000))
    end
    entry.purses[#entry.purses + 1] = budget.purse
  end
  call('SET', P .. 'entry:' .. ask.entry_id, cmsgpack.pack(entry), 'EX', DAY + 2 * HOUR)
  lease(ask.entry_id, now + REQUEST_LEASE)
end

-- Return which of the names are marked.
local function marked(names)
  local found = {}
  if names and #names > 0 then
    for at, since in ipairs(call('HMGET', P .. 'marks', unpack(names))) do
      found[at] = since and true or false
    end
  end
  return found
end

function operations.admit(ask)
  for at, is_marked in ipairs(marked(ask.marks)) do
    if is_marked then
      return { denied = 'blocked', at = at - 1 }
    end
  end
  local record
  if ask.owns then
    record = find(ask.owns[1])
    if not record or not owned(record, ask.owns) then
      return { denied = 'unknown_request', at = 0 }
    end
  end
  if ask.entry_id ~= '' and call('EXISTS', P .. 'entry:' .. ask.entry_id) == 1 then
    return redis.error_reply('VOID the caller has given this admission up')
  end
  local windows = {}
  local refusal = judge(ask, windows)
  if refusal then
    return refusal
  end
  local states = {}
  for at, rate in ipairs(ask.rates) do
    local window = window_of(rate, windows)
    hit(window, rate[3])
    states[at] = rate_state(window, rate[2], rate[3])
  end
  if record then
    ask_at(ask.owns[1], now + FIRST_ASK, 'XX')
    if record.attempt > 0 then
      record.attempt = 0
      keep(P .. 'record:' .. ask.owns[1], record)
    end
  end
  if ask.entry_id ~= '' then
    open(ask)
  end
  return { at = 0, rates = states, record = record }
end

-- An admission whose answer never came is undone if it happened, and must not happen any more if it did not.
function operations.void(entry_id)
  local name = P .. 'entry:' .. entry_id
  local entry = load(name)
  if entry and entry.outcome == '' then
    settle(entry_id, entry, 'released', 0)
  end
  call('SET', name, 'void', 'EX', 2 * REQUEST_LEASE)
end

function operations.submitted(submission)
  local record, mine = submission.record, P .. 'owner:' .. submission.flooder
  local id = record.request_id
  if find(id) then
    return
  end
  record.born, record.attempt, record.flooder = now, 0, submission.flooder
  call('SET', P .. 'record:' .. id, cmsgpack.pack(record), 'EX', RECORD)
  local name = P .. 'entry:' .. record.entry_id
  local entry = load(name)
  if entry then
    entry.request_id, entry.dies = id, now + RECORD
    call('SET', name, cmsgpack.pack(entry), 'EX', RECORD + 2 * HOUR)
    if entry.outcome == '' then
      lease(record.entry_id, now + submission.lease_seconds)
      ask_at(id, now + FIRST_ASK)
      call('EXPIRE', ASKS, RECORD)
    end
  end
  for _, index in ipairs({ mine, RECORDS }) do
    call('ZADD', index, exactly(now), id)
    call('EXPIRE', index, RECORD)
    local over = call('ZRANGEBYSCORE', index, '-inf', exactly(now - RECORD), 'LIMIT', 0, AT_ONCE)
    if #over > 0 then
      call('ZREM', index, unpack(over))
    end
  end
  local crowd = call('ZCARD', mine) > submission.most_per_owner and mine
    or call('ZCARD', RECORDS) > submission.most and RECORDS
  if crowd then
    local oldest = call('ZRANGE', crowd, 0, 0)[1]
    call('ZREM', crowd, oldest)
    drop_record(oldest)
  end
end

function operations.completed(request_id)
  local record = find(request_id)
  if not record or record.completed then
    return
  end
  record.completed = true
  keep(P .. 'record:' .. request_id, record)
  local entry = load(P .. 'entry:' .. record.entry_id)
  if entry and #entry.slots > 0 then
    free(record.entry_id, entry)
    keep(P .. 'entry:' .. record.entry_id, entry)
  end
end

function operations.hasten(request_id)
  local record = find(request_id)
  local entry = record and load(P .. 'entry:' .. record.entry_id)
  if entry and (entry.outcome == '' or entry.outcome == 'as_reserved') then
    record.attempt, record.late_asks = 0, entry.outcome == '' and 0 or LATE_ASKS
    keep(P .. 'record:' .. request_id, record)
    ask_at(request_id, now)
    call('EXPIRE', ASKS, RECORD)
  end
end

function operations.find(request_id)
  return find(request_id)
end

function operations.due(limit)
  local claimed = {}
  for _, id in ipairs(call('ZRANGEBYSCORE', ASKS, '-inf', exactly(now), 'LIMIT', 0, limit + AT_ONCE)) do
    if #claimed == limit then
      break
    end
    local record = find(id)
    local entry = record and load(P .. 'entry:' .. record.entry_id)
    local late = entry and entry.outcome == 'as_reserved' and record.attempt < (record.late_asks or 0)
    if entry and (entry.outcome == '' or late) then
      claimed[#claimed + 1] = { record = record, attempt = record.attempt, payer = entry.payer }
      record.attempt = record.attempt + 1
      keep(P .. 'record:' .. id, record)
      ask_at(id, now + math.min(FIRST_ASK * 2 ^ record.attempt, LONGEST_ASK), 'XX')
    else
      call('ZREM', ASKS, id)
    end
  end
  return claimed
end

function operations.standing(question)
  local standing, windows = { rates = {}, in_use = {}, budgets = {}, marked = marked(question.marks) }, {}
  for at, rate in ipairs(question.rates) do
    standing.rates[at] = rate_state(window_of(rate, windows), rate[2], rate[3])
  end
  for at, limit in ipairs(question.concurrency) do
    standing.in_use[at] = call('SCARD', P .. 'slots:' .. limit[1])
  end
  for at, budget in ipairs(question.budgets) do
    local purse, ends = purse_of(budget)
    local held = call('HMGET', purse, 'spent', 'reserved')
    standing.budgets[at] = { tonumber(held[1] or 0), tonumber(held[2] or 0), ends or false }
  end
  return standing
end

function operations.renew(entry_ids)
  for _, id in ipairs(entry_ids) do
    local entry = load(P .. 'entry:' .. id)
    if entry and entry.outcome == '' and entry.request_id == '' then
      lease(id, now + REQUEST_LEASE)
      call('EXPIRE', P .. 'entry:' .. id, DAY + 2 * HOUR)
      for _, slots in ipairs(entry.slots) do
        call('EXPIRE', slots, DAY + 2 * HOUR)
      end
    end
  end
end

function operations.extend(extension)
  local name, seconds = P .. 'cover:' .. extension[1], extension[2]
  local left = math.max(tonumber(call('GET', name) or now) - now, 0)
  if seconds > left then
    call('SET', name, exactly(now + seconds), 'PX', math.ceil(seconds * 1000))
  end
  return left
end

function operations.mark(name)
  call('HSETNX', P .. 'marks', name, exactly(now))
end

function operations.unmark(name)
  call('HDEL', P .. 'marks', name)
end

function operations.marks()
  local all, found = call('HGETALL', P .. 'marks'), {}
  for at = 1, #all, 2 do
    found[all[at]] = tonumber(all[at + 1])
  end
  return next(found) and found
end

function operations.forget(question)
  for _, rate in ipairs(question.rates) do
    call('DEL', P .. 'rate:' .. rate[3] .. ':' .. rate[1])
  end
  for _, budget in ipairs(question.budgets) do
    local purse = purse_of(budget)
    if call('EXISTS', purse) == 1 then
      call('HSET', purse, 'spent', 0)
    end
  end
end

function operations.running(periods)
  local answer = {}
  for at, period in ipairs(periods) do
    local label, ends = running(period)
    answer[at] = { label, ends or false }
  end
  return answer
end

end_leases()
local reply = operations[ARGV[4]](cmsgpack.unpack(ARGV[5]))
if type(reply) == 'table' and reply.err then
  return reply
end
reply = reply and cmsgpack.pack(reply) or false
return ARGV[1] == '' and { epoch, reply } or reply
