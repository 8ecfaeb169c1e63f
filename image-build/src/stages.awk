# Says `run` if a stage that the build needs, and that is not built on the builder's own platform, has a `RUN`.
# `targets` are the stages' names or numbers, with commas between them; an empty one is the last stage.
function flag(word, name) { return substr(word, 1, length(name) + 3) == "--" name "=" ? substr(word, length(name) + 4) : "" }
function instruction(line,    words, count, i, value, word, parts, pieces) {
	count = split(line, words, /[ \t]+/)
	word = toupper(words[1])
	if (word == "FROM") {
		stages++
		for (i = 2; i < count && words[i] ~ /^--/; i++) if (flag(words[i], "platform") ~ /BUILDPLATFORM/) native[stages] = 1
		needs[stages] = needs[stages] " " tolower(words[i])
		names[stages - 1] = stages
		if (toupper(words[i + 1]) == "AS") names[tolower(words[i + 2])] = stages
		last = stages
		return
	}
	if (word == "RUN") runs[stages] = 1
	if (word == "RUN" || word == "COPY" || word == "ADD") for (i = 2; i <= count && words[i] ~ /^--/; i++) {
		value = flag(words[i], "from")
		if (value != "") needs[stages] = needs[stages] " " tolower(value)
		parts = split(flag(words[i], "mount"), pieces, ",")
		for (; parts > 0; parts--) if (pieces[parts] ~ /^from=/) needs[stages] = needs[stages] " " tolower(substr(pieces[parts], 6))
	}
}
function visit(stage,    words, count, i) {
	if (stage in seen) return
	seen[stage] = 1
	if ((stage in runs) && !(stage in native)) found = 1
	count = split(needs[stage], words, " ")
	for (i = 1; i <= count; i++) if ((words[i] in names) && names[words[i]] != stage) visit(names[words[i]])
}
{
	sub(/\r$/, "")
	if (end != "") {
		text = $0
		sub(/^\t+/, "", text)
		if (text == end) end = ""
		next
	}
	if ($0 ~ /^[ \t]*#/) next
	if (sub(/\\[ \t]*$/, " ")) {
		line = line $0
		next
	}
	line = line $0
	sub(/^[ \t]+/, "", line)
	# A here-document's lines are no instructions.
	if (line ~ /^([Rr][Uu][Nn]|[Cc][Oo][Pp][Yy]|[Aa][Dd][Dd])[ \t]/ && match(line, /<<-?["']?[A-Za-z_][A-Za-z0-9_]*/)) {
		end = substr(line, RSTART, RLENGTH)
		gsub(/[<"'-]/, "", end)
	}
	instruction(line)
	line = ""
}
END {
	# Nothing has no fields, and is the last stage alone.
	count = split(tolower(targets), wanted, ",")
	if (count == 0) visit(last)
	for (number = 1; number <= count; number++) {
		if (wanted[number] == "") visit(last)
		else if (wanted[number] in names) visit(names[wanted[number]])
	}
	if (found) print "run"
}
