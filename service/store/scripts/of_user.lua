-- Return whether the fields of an entry of the log are those of a user's event. A garbled one that holds his id is his.
-- user: the id; quoted: the id as JSON, as `event_body` writes it
local function of_user(fields, user, quoted)
  for at = 1, #fields, 2 do
    if fields[at] == 'e' and string.find(fields[at + 1], quoted, 1, true) then
      local read, said = pcall(cjson.decode, fields[at + 1])
      return not read or type(said) ~= 'table' or said['user'] == user
    end
  end
  return false
end
