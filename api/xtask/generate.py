#!/usr/bin/env python3
"""Writes api/src/schema/facts.txt: the shape of every Kubernetes type, without descriptions.

    pip download --no-deps kubernetes-validate -d /tmp/kv
    python3 api/xtask/generate.py /tmp/kv/kubernetes_validate-*.whl > api/src/schema/facts.txt

The package carries upstream's swagger as JSON schema. Format of the file (one line each, fields separated by blanks):

    D <definition name> [M=<map type>] [S=<scalar>]            a definition
    G <group or -> <version> <kind>                            its group-version-kinds
    U <discriminator or -> <field>...                          a union
    F <field> <type> [r] [t=<list type>] [k=<map keys>] [s=<patch strategies>] [m=<patch merge key>] [a] [e=<enum>] [d=<default as JSON>]

Types: s string, i int32, l int64, b bool, f double, q Quantity, t Time, u MicroTime, o IntOrString, y bytes, * any JSON,
O any object, {X map of X, [X list of X, @N reference to the definition of line number N in the list of definitions.
`r` is required, `a` an atomic map or object (x-kubernetes-map-type).
"""
import json
import sys
import zipfile

VERSION = "v1.36.0-local"


def main():
    wheel = zipfile.ZipFile(sys.argv[1])
    path = f"kubernetes_validate/kubernetes-json-schema/{VERSION}/_definitions.json"
    defs = json.loads(wheel.read(path))["$defs"]
    names = sorted(defs)
    index = {n: i for i, n in enumerate(names)}
    scalars = {
        "io.k8s.apimachinery.pkg.api.resource.Quantity": "q",
        "io.k8s.apimachinery.pkg.apis.meta.v1.Time": "t",
        "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime": "u",
        "io.k8s.apimachinery.pkg.util.intstr.IntOrString": "o",
        "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1": "O",
        "io.k8s.apimachinery.pkg.runtime.RawExtension": "O",
        "io.k8s.apimachinery.pkg.apis.meta.v1.Patch": "O",
    }

    def kind(s):
        t = s.get("type")
        if isinstance(t, list):
            t = [x for x in t if x != "null"][0]
        return t

    def typ(s, where):
        if "allOf" in s and "$ref" in s["allOf"][0]:
            s = s["allOf"][0]
        if "$ref" in s:
            name = s["$ref"].rsplit("/", 1)[1]
            if name in scalars:
                return scalars[name]
            return f"@{index[name]}"
        t, f = kind(s), s.get("format")
        if t == "string":
            return {"byte": "y", "date-time": "t"}.get(f, "s")
        if t == "integer":
            return {"int32": "i", "int64": "l", None: "l"}[f]
        if t == "boolean":
            return "b"
        if t == "number":
            return "f"
        if t == "array":
            return "[" + typ(s["items"], where)
        if t == "object":
            if "additionalProperties" in s:
                return "{" + typ(s["additionalProperties"], where)
            return "O"
        if t is None:
            return "*"
        raise SystemExit(f"{where}: {s}")

    out = []
    w = out.append
    w(f"# Kubernetes {VERSION[1:].split('-')[0]}; written by api/xtask/generate.py, not by hand.")
    for n in names:
        d = defs[n]
        line = f"D {n}"
        if n in scalars:
            line += f" S={scalars[n]}"
        elif "properties" not in d:
            k = kind(d)
            if k == "object" or k is None:
                line += " S=" + ("O" if k == "object" and n.endswith("Patch") else "*" if k is None else "E")
            else:
                line += " S=" + typ(d, n)
        if d.get("x-kubernetes-map-type"):
            line += f" M={d['x-kubernetes-map-type']}"
        w(line)
        for g in d.get("x-kubernetes-group-version-kind", []):
            w(f"G {g['group'] or '-'} {g['version']} {g['kind']}")
        for u in d.get("x-kubernetes-unions", []):
            fields = " ".join(sorted(u["fields-to-discriminateBy"]))
            w(f"U {u.get('discriminator', '-')} {fields}")
        required = set(d.get("required", []))
        for f, s in sorted(d.get("properties", {}).items()):
            line = f"F {f} {typ(s, n + '.' + f)}"
            if f in required:
                line += " r"
            if s.get("x-kubernetes-list-type"):
                line += " t=" + s["x-kubernetes-list-type"]
            if s.get("x-kubernetes-list-map-keys"):
                line += " k=" + ",".join(s["x-kubernetes-list-map-keys"])
            if s.get("x-kubernetes-patch-strategy"):
                line += " s=" + s["x-kubernetes-patch-strategy"]
            if s.get("x-kubernetes-patch-merge-key"):
                line += " m=" + s["x-kubernetes-patch-merge-key"]
            if s.get("x-kubernetes-map-type") == "atomic":
                line += " a"
            if s.get("enum") and f not in ("apiVersion", "kind"):
                line += " e=" + ",".join(s["enum"])
            if "default" in s:
                line += " d=" + json.dumps(s["default"]).replace(" ", "")
            w(line)
    print("\n".join(out))


main()
