#!/usr/bin/env python3
"""Writes src/protobuf/tags.txt: for each protobuf message of the built-in kinds the JSON name of each tag.

Read from the sources of the crate k8s-pb (prost structs with tags) and the schema facts (JSON names). A message field
without a JSON name is an embedded Go struct: its fields lie in its parent, which the table writes as `tag+message`.

    xtask/protobuf.py PATH-OF-K8S-PB > src/protobuf/tags.txt
"""
import os, re, sys

root = os.path.join(sys.argv[1], "src")
here = os.path.dirname(os.path.abspath(__file__))

facts, order, current = {}, [], None
for line in open(os.path.join(here, "../src/schema/facts.txt")):
    parts = line.split()
    if parts[:1] == ["D"]:
        current = facts.setdefault(parts[1], [])
    elif parts[:1] == ["F"]:
        current.append(parts[1])

# prost writes HTTPGetAction as HttpGetAction.
by_lower = {name.lower(): name for name in facts}
upstream = lambda name: by_lower.get(name.lower(), name)

messages = {}
for directory, _, files in os.walk(root):
    if "mod.rs" not in files:
        continue
    relative = os.path.relpath(directory, root)
    if relative == ".":
        continue
    package = "io.k8s." + relative.replace("/", ".")
    name, tag, kind, open_line = None, None, None, ""
    for line in open(os.path.join(directory, "mod.rs")):
        if open_line or re.match(r"\s+pub \w\S*:(?!:)[^,]*$", line):
            # A type over several lines.
            open_line += " " + line.strip()
            if not line.rstrip().endswith(">,"):
                continue
            line, open_line = "    " + open_line.strip() + "\n", ""
        if m := re.match(r"pub struct (\w+)", line):
            name = upstream(f"{package}.{m.group(1)}")
            messages[name] = []
        elif m := re.match(r"\s+#\[prost\((.*)tag = \"(\d+)\"\)\]", line):
            kind, tag = m.group(1), int(m.group(2))
        elif (m := re.match(r"\s+pub (\w+|r#\w+): (.*),$", line)) and tag is not None:
            field, rust = m.group(1).removeprefix("r#"), m.group(2)
            target = None
            if "message" in kind and "map" not in kind:
                inner = re.search(r"([\w:]+)>*$", rust.replace(" ", "").replace(",>", ">")).group(1)
                path = package.removeprefix("io.k8s.").split(".")
                steps = inner.split("::")
                # prost writes `super::` from the module of the message.
                while steps and steps[0] == "super":
                    path, steps = path[:-1], steps[1:]
                target = upstream("io.k8s." + ".".join(path + steps))
            messages[name].append((tag, field, target))
            tag = None

norm = lambda s: s.replace("_", "").lower()
table = {}

def names(message, fields):
    """Tags of a message whose JSON names are among these fields."""
    known = {norm(f): f for f in fields}
    out = []
    for tag, field, target in messages[message]:
        if norm(field) in known:
            out.append(f"{tag} {known[norm(field)]}")
        elif target in messages:
            inline(target, fields)
            out.append(f"{tag} +{target.removeprefix('io.k8s.')}")
        else:
            print(f"no JSON name: {message}.{field}", file=sys.stderr)
    return out

def inline(message, fields):
    # Fields of an embedded struct are looked up in its parent each time; parents agree.
    table.setdefault(message + "*", names(message, fields))

for message in sorted(messages):
    if message in facts and facts[message]:
        table[message] = names(message, [f for f in facts[message]])
print("# Written by api/xtask/protobuf.py, not by hand: message, then tag and JSON name; + is an embedded struct.")
for message in sorted(table):
    print(message.removeprefix("io.k8s."), *table[message])
