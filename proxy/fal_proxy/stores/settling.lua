-- How entries end, and who tells of it, on top of store.lua.

local MARKS_KEPT = 8 -- of settlements that changed what one job is charged
local TOLD_AT_ONCE = 100

-- Return by how much a settlement changes what is to be told of its entry. `mark` names it where that is returned to who
-- asked: it is kept with the entry, or, when that ends, in its place, so that who does not hear it may ask again.
local function settle_once(id, name, entry, outcome, amount, mark)
  if not entry or (entry.outcome ~= '' and entry.dies and entry.dies <= now) then
    return 0
  end
  if outcome ~= 'billed' then
    if entry.outcome ~= '' then
      return 0
    end
    amount = outcome == 'as_reserved' and entry.amount or 0
  end
  local more = settle(id, entry, outcome, amount)
  local marked = mark and more ~= 0
  if entry.request_id ~= '' then
    if marked then
      entry.marks = entry.marks or {}
      table.insert(entry.marks, { mark, more })
      if #entry.marks > MARKS_KEPT then
        table.remove(entry.marks, 1)
      end
    end
    keep(name, entry)
  elseif marked then
    call('SET', name, 'void' .. cmsgpack.pack({ mark, more, entry.payer or {} }), 'EX', TOMBSTONE)
  else
    call('DEL', name)
  end
  return more
end

-- Return what the settlement of this mark has changed, and of which entry, nothing if it was never made. Takes the mark off.
local function unheard(name, entry, mark)
  for at, found in ipairs(entry and entry.marks or {}) do
    if found[1] == mark then
      table.remove(entry.marks, at)
      keep(name, entry)
      return found[2], entry
    end
  end
  local raw = call('GET', name)
  if raw and raw:sub(1, 4) == 'void' and #raw > 4 then
    local found = cmsgpack.unpack(raw:sub(5))
    if found[1] == mark then
      call('SET', name, 'void', 'KEEPTTL')
      return found[2], { payer = found[3] }
    end
  end
end

-- `again`: the answer did not come, if this was settled at all; nobody but the settler tells of it any more.
function operations.settle(settlement)
  local id, outcome, amount, by, onto, mark, again = unpack(settlement, 1, 7)
  local name = P .. 'entry:' .. id
  local entry = load(name)
  local payer = entry and entry.payer
  local cause = again and 'late' or nil
  if onto ~= '' then
    cause = 'apart'
  elseif not again and by and payer and (by[1] ~= payer[1] or by[2] ~= payer[2]) then
    cause = 'another'
  end
  local more, of
  if again then
    more, of = unheard(name, entry, mark)
  end
  if not more then
    of, more = entry, settle_once(id, name, entry, outcome, amount, not cause and mark)
  end
  local other = onto ~= '' and more ~= 0 and load(P .. 'entry:' .. onto)
  if other and other.outcome == '' then
    other.onto = (other.onto or 0) + more
    keep(P .. 'entry:' .. onto, other)
  elseif cause and more ~= 0 then
    leave(of, more, cause)
  end
  return cause and 0 or more
end

-- A change is lent for as long as a process may be silent; then it died, and another one tells of it.
function operations.untold(told)
  if #told > 0 then
    call('HDEL', UNTOLD, unpack(told))
    call('ZREM', TELLABLE, unpack(told))
  end
  local lent = {}
  for at, number in ipairs(call('ZRANGEBYSCORE', TELLABLE, '-inf', exactly(now), 'LIMIT', 0, TOLD_AT_ONCE)) do
    lent[at] = cmsgpack.unpack(call('HGET', UNTOLD, number))
    call('ZADD', TELLABLE, exactly(now + REQUEST_LEASE), number)
  end
  return lent
end
