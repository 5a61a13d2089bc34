"""What Redis does for a channel, each in one step, as Lua. docs/channels-format.md has the keys, with their version.

All keys of a channel hold `{PREFIX:CHANNEL}` and so are in one slot of a cluster. Each script checks types and
permissions by reading before it changes anything; so one that fails has changed nothing, but for its notification.
"""

from __future__ import annotations

from typing import Final

__all__ = ["ALIVE", "ALL", "LOOK", "MEMBERS", "META_SECONDS", "PUBLISH", "channel_keys", "member_keys"]

#: Seconds after its last use at which a channel's numbers are forgotten, and its next epoch begins.
META_SECONDS: Final = 7 * 86400


def channel_keys(prefix: bytes, channel: bytes) -> tuple[bytes, bytes, bytes]:
    """Return a channel's keys: its numbers, its stream, and the name under which it is notified of."""
    tag = b"{" + prefix + b":" + channel + b"}"
    return tag + b":meta", tag + b":stream", tag


def member_keys(prefix: bytes, channel: bytes) -> tuple[bytes, bytes]:
    """Return the keys of those who are there: members, and processes."""
    tag = b"{" + prefix + b":" + channel + b"}"
    return tag + b":members", tag + b":alive"


#: KEYS: those of `channel_keys`. ARGV: the session; the message's number in it, which grows; "t" or "b"; the message; a
#: new epoch, in case there is none; the limits in messages, bytes and seconds; seconds for the numbers; a key of the
#: program's, or ""; "1" if it may have been stored already. Returns the epoch, the offset and the id; behind them what
#: is wrong, if it is stored all the same.
#:
#: The numbers hold for each session the last number that was stored: a publish that comes again after a lost
#: connection is found by that, and in the stream. Of more than 256 sessions those that were silent for longest are
#: forgotten; what they send again is looked for in the stream alone.
#:
#: What need not be done each time is not: keys are made to live an eighth longer, or a day, and are only seen to again
#: when that is over; a history is trimmed when it has a sixteenth more messages than it may have, or more bytes, and in
#: bytes by a sixteenth more than it must.
#:
#: XLEN before DEL is there to fail: a key of another type is not ours to delete.
PUBLISH: Final = """#!lua
local meta, stream, notify = KEYS[1], KEYS[2], KEYS[3]
local session, number = ARGV[1], tonumber(ARGV[2])
local id = session .. '-' .. ARGV[2]
local mine = 's:' .. session
local now = redis.call('HMGET', meta, 'epoch', 'offset', 'id', 'bytes', 'count', 'sessions', mine)
local epoch, offset, before = now[1], tonumber(now[2]), now[3]
local bytes, count, sessions = tonumber(now[4]), tonumber(now[5]), tonumber(now[6] or '0')
local given = ''
if ARGV[10] ~= '' then
  given = notify .. ':key:' .. ARGV[10]
  local known = redis.call('GET', given)
  if known then
    local e, o, i = string.match(known, '(%S+) (%S+) (%S+)')
    return {e, o, i}
  end
end
local stored = now[7] and tonumber(string.match(now[7], '%d+')) >= number
if stored or (ARGV[11] == '1' and not now[7]) then
  local up_to = '+'
  repeat
    local entries = redis.call('XREVRANGE', stream, up_to, '-', 'COUNT', 16)
    for _, entry in ipairs(entries) do
      if entry[2][2] == id then return {epoch, string.match(entry[1], '%d+'), id} end
      up_to = '(' .. entry[1]
    end
  until #entries == 0
  if stored then return redis.error_reply('UNKNOWN whether ' .. id .. ' was stored') end
end
local left = redis.call('PTTL', stream)
local fresh = not epoch
if fresh then
  redis.call('XLEN', stream)
  redis.call('DEL', stream)
  epoch, offset, before = ARGV[5], 0, ARGV[5]
end
if fresh or left == -2 then bytes, count = 0, 0 end
offset = offset + 1
local place = string.format('%.0f', offset)
redis.call('XADD', stream, place .. '-0', 'i', id, 'p', before, 'k', ARGV[3], 'm', ARGV[4])
bytes, count = bytes + #ARGV[4], count + 1
local most, size = tonumber(ARGV[6]), tonumber(ARGV[7])
if count > most + math.floor(most / 16) or (bytes > size and count > 1) then
  if bytes > size then size = size - math.floor(size / 16) end
  count = redis.call('XLEN', stream)
  while count > 1 and (count > most or bytes > size) do
    local gone = {}
    for _, entry in ipairs(redis.call('XRANGE', stream, '-', '+', 'COUNT', math.min(math.floor(count / 16) + 1, 64))) do
      if count == 1 or (count <= most and bytes <= size) then break end
      bytes, count, gone[#gone + 1] = bytes - #(entry[2][8] or ''), count - 1, entry[1]
    end
    redis.call('XDEL', stream, unpack(gone))
  end
  if count == 1 then bytes = #ARGV[4] end
end
if fresh then redis.call('HSET', meta, 'v', '1', 'epoch', epoch) end
if not now[7] then
  sessions = sessions + 1
  if sessions > 256 then
    local all, last = redis.call('HGETALL', meta), {}
    for i = 1, #all, 2 do
      if string.sub(all[i], 1, 2) == 's:' then
        last[#last + 1] = {all[i], tonumber(string.match(all[i + 1], '%d+ (%d+)'))}
      end
    end
    table.sort(last, function(a, b) return a[2] < b[2] end)
    for i = 1, #last - 128 do redis.call('HDEL', meta, last[i][1]) end
    sessions = math.min(#last, 128) + 1
  end
  redis.call('HSET', meta, 'sessions', sessions)
end
redis.call('HSET', meta, 'offset', place, 'id', id, 'bytes', bytes, 'count', count, mine, ARGV[2] .. ' ' .. place)
local seconds = tonumber(ARGV[8])
local longer = math.min(math.floor(seconds / 8), 86400)
if left < seconds * 1000 or left > (seconds + longer) * 1000 then
  redis.call('EXPIRE', stream, seconds + longer)
  redis.call('EXPIRE', meta, ARGV[9] + longer)
end
if given ~= '' then redis.call('SET', given, epoch .. ' ' .. place .. ' ' .. id, 'EX', 86400) end
local told = redis.pcall('SPUBLISH', notify,
  table.concat({'1', epoch, place, id, before, ARGV[3]}, ' ') .. '\\n' .. ARGV[4])
if type(told) == 'table' and told['err'] then return {epoch, place, id, told['err']} end
return {epoch, place, id}
"""

#: KEYS: the first two of `channel_keys`. ARGV: a new epoch, in case there is none; seconds for the numbers; from which
#: offset to read if the epoch is none of those that follow, or "" for not at all; then pairs of an epoch and an offset.
#: Returns epoch, offset, id, and the entries behind the offset.
LOOK: Final = """#!lua flags=allow-oom
local meta, stream = KEYS[1], KEYS[2]
local now = redis.call('HMGET', meta, 'epoch', 'offset', 'id')
if not now[1] then
  redis.call('HSET', meta, 'v', '1', 'epoch', ARGV[1], 'offset', '0', 'id', ARGV[1], 'bytes', '0', 'count', '0')
  redis.call('DEL', stream)
  now = {ARGV[1], '0', ARGV[1]}
end
redis.call('EXPIRE', meta, ARGV[2] + 86400)
local from = ARGV[3]
for i = 4, #ARGV, 2 do
  if ARGV[i] == now[1] then from = ARGV[i + 1] end
end
local entries = {}
if from ~= '' and tonumber(from) < tonumber(now[2]) then
  entries = redis.call('XRANGE', stream, string.format('%.0f-0', tonumber(from) + 1), '+')
end
return {now[1], now[2], now[3], entries}
"""

#: KEYS: those of `member_keys`. ARGV: the process, seconds that it may be silent, "1" if it says all that it has, then
#: pairs of a member and how many connections. Returns 1; or 0 if the process was forgotten and must say all it has.
ALIVE: Final = """#!lua
local members, alive = KEYS[1], KEYS[2]
local now = tonumber(redis.call('TIME')[1])
local known = redis.call('ZSCORE', alive, ARGV[1])
if not known and ARGV[3] ~= '1' then return 0 end
redis.call('ZADD', alive, now + tonumber(ARGV[2]), ARGV[1])
for i = 4, #ARGV, 2 do
  local field = ARGV[1] .. ':' .. ARGV[i]
  if ARGV[i + 1] == '0' then redis.call('HDEL', members, field)
  else redis.call('HSET', members, field, ARGV[i + 1]) end
end
redis.call('EXPIRE', alive, 3600)
redis.call('EXPIRE', members, 3600)
return 1
"""

#: KEYS: those of `member_keys`. Returns members and connections in turn, of processes that live; forgets the others'.
MEMBERS: Final = """#!lua flags=allow-oom
local members, alive = KEYS[1], KEYS[2]
local now = tonumber(redis.call('TIME')[1])
redis.call('ZREMRANGEBYSCORE', alive, '-inf', now)
local living = {}
for _, process in ipairs(redis.call('ZRANGE', alive, 0, -1)) do living[process] = true end
local all, found = redis.call('HGETALL', members), {}
for i = 1, #all, 2 do
  local process, member = string.match(all[i], '^([^:]*):(.*)$')
  if living[process] then
    found[#found + 1] = member
    found[#found + 1] = all[i + 1]
  else
    redis.call('HDEL', members, all[i])
  end
end
return found
"""

ALL: Final = (PUBLISH, LOOK, ALIVE, MEMBERS)
