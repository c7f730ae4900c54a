//! What a request is about, read from its method, path and query (upstream's `RequestInfo`,
//! k8s.io/apiserver/pkg/endpoints/request/requestinfo.go). Pure; knows no kind: whether the resource exists is asked later.

use ::http::Method;
use skiff_api::selector::FieldSelector;

/// The parts of a request that authorization and dispatch need.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestInfo {
    /// True when the path names an API resource (`/api/v1/...`, `/apis/g/v/...`); false for `/healthz`, `/apis` and such.
    pub is_resource: bool,
    /// The path as it was sent, without the query.
    pub path: String,
    /// Lower-case Kubernetes verb (`get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`), or
    /// the lower-case HTTP method for paths that are no resource.
    pub verb: &'static str,
    /// API group; empty for core.
    pub group: String,
    /// API version.
    pub version: String,
    /// Namespace; empty for cluster-wide requests. For the namespaces resource itself it is the object's name, as upstream.
    pub namespace: String,
    /// Plural resource.
    pub resource: String,
    /// Subresource, empty when there is none.
    pub subresource: String,
    /// Object name; empty for collections.
    pub name: String,
    /// What follows the subresource (`/proxy/{path}`), without a leading slash.
    pub tail: String,
    /// Of list, watch and deletecollection: what the field selector asks for exactly, e.g. `spec.nodeName` and `n1`.
    /// Authorization knows it, so that rights on single names open lists of them.
    pub fields: Vec<(String, String)>,
    /// Of list and watch: the one name that `metadata.name=` allows; empty for none. Counts as the name in authorization.
    pub selected: String,
}

/// Undoes percent encoding of one path element or query part; invalid sequences stay as they are. `plus` turns `+` to space.
pub fn unescape(s: &str, plus: bool) -> String {
    if !s.bytes().any(|b| b == b'%' || (plus && b == b'+')) {
        return s.to_string();
    }
    let b = s.as_bytes();
    let hex = |c: u8| (c as char).to_digit(16).map(|d| d as u8);
    let mut out = Vec::with_capacity(b.len());
    let mut i = 0;
    while i < b.len() {
        match b[i] {
            b'%' if i + 2 < b.len() => match (hex(b[i + 1]), hex(b[i + 2])) {
                (Some(h), Some(l)) => {
                    out.push(h << 4 | l);
                    i += 2;
                }
                _ => out.push(b'%'),
            },
            b'+' if plus => out.push(b' '),
            c => out.push(c),
        }
        i += 1;
    }
    String::from_utf8(out).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
}

/// The query's pairs, decoded, in order.
pub fn query_pairs(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter(|p| !p.is_empty())
        .map(|p| {
            let (k, v) = p.split_once('=').unwrap_or((p, ""));
            (unescape(k, true), unescape(v, true))
        })
        .collect()
}

/// A query parameter's first value, decoded: what Go's url.Values.Get gives. Whoever decides by a parameter and whoever
/// acts on it have to read the same one.
pub fn first_value(query: &str, name: &str) -> Option<String> {
    query
        .split('&')
        .filter(|p| !p.is_empty())
        .map(|p| p.split_once('=').unwrap_or((p, "")))
        .find(|(k, _)| *k == name || (k.contains('%') && unescape(k, true) == name))
        .map(|(_, v)| unescape(v, true))
}

/// Go's strconv.ParseBool as query parameters are converted upstream: absent and `0`/`false` are false, anything else true.
pub fn truthy(v: &str) -> bool {
    !matches!(v, "0" | "false" | "False" | "FALSE" | "f" | "F")
}

fn method_name(m: &Method) -> &'static str {
    match *m {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        _ => "unknown",
    }
}

/// Subresources of namespaces; any other element after the name is a resource inside the namespace.
const NAMESPACE_SUBRESOURCES: [&str; 2] = ["status", "finalize"];

impl RequestInfo {
    /// Reads method, path and query.
    pub fn parse(method: &Method, path: &str, query: &str) -> Self {
        let mut info = Self {
            path: path.to_string(),
            verb: method_name(method),
            ..Self::default()
        };
        let mut parts = path
            .trim_matches('/')
            .split('/')
            .map(|p| unescape(p, false));
        match parts.next().as_deref() {
            Some("api") => {}
            Some("apis") => match parts.next() {
                Some(g) => info.group = g,
                None => return info,
            },
            _ => return info,
        }
        let Some(version) = parts.next().filter(|v| !v.is_empty()) else {
            info.group.clear();
            return info;
        };
        info.version = version;
        let mut parts = parts.peekable();
        if parts.peek().is_none_or(|p| p.is_empty()) {
            // `/apis/g/v` is discovery.
            info.group.clear();
            info.version.clear();
            return info;
        }
        info.is_resource = true;
        info.verb = match *method {
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            Method::GET | Method::HEAD => "get",
            _ => "",
        };
        let mut first = parts.next().unwrap_or_default();
        // `/watch/...`, the deprecated form.
        let mut deprecated_watch = false;
        if first == "watch" && parts.peek().is_some() {
            deprecated_watch = true;
            first = parts.next().unwrap_or_default();
        }
        if first == "namespaces" {
            match parts.next().filter(|n| !n.is_empty()) {
                None => info.resource = first,
                Some(ns) => {
                    info.namespace = ns.clone();
                    match parts.next().filter(|r| !r.is_empty()) {
                        None => {
                            info.resource = first;
                            info.name = ns;
                        }
                        Some(r) if NAMESPACE_SUBRESOURCES.contains(&r.as_str()) => {
                            info.resource = first;
                            info.name = ns;
                            info.subresource = r;
                        }
                        Some(r) => {
                            info.resource = r;
                            info.name = parts.next().unwrap_or_default();
                            info.subresource = parts.next().unwrap_or_default();
                        }
                    }
                }
            }
        } else {
            info.resource = first;
            info.name = parts.next().unwrap_or_default();
            info.subresource = parts.next().unwrap_or_default();
        }
        let tail: Vec<String> = parts.collect();
        info.tail = tail.join("/");
        if deprecated_watch {
            // These paths have one object or all of them; selectors open nothing there.
            info.verb = "watch";
            return info;
        }
        if info.name.is_empty() {
            match info.verb {
                "get" => {
                    info.verb = "list";
                    if first_value(query, "watch").is_some_and(|v| truthy(&v)) {
                        info.verb = "watch";
                    }
                }
                "delete" => info.verb = "deletecollection",
                _ => {}
            }
            if matches!(info.verb, "list" | "watch" | "deletecollection") {
                info.select(query);
            }
        }
        info
    }

    fn select(&mut self, query: &str) {
        if !query.contains("ieldSelector") && !query.contains('%') {
            return;
        }
        let Some(text) = first_value(query, "fieldSelector") else {
            return;
        };
        let Some(terms) = FieldSelector::exact_terms(&text) else {
            return;
        };
        let mut names = terms
            .iter()
            .filter(|(k, _)| k == "metadata.name")
            .map(|(_, v)| v);
        // Upstream takes the first of several; two different ones select nothing and need not open anything.
        if self.verb != "deletecollection"
            && let Some(name) = names.next()
            && names.all(|n| n == name)
            && !matches!(name.as_str(), "." | "..")
            && !name.contains(['/', '%'])
        {
            self.selected = name.clone();
        }
        self.fields = terms;
    }

    /// The name that authorization goes by.
    pub fn authorized_name(&self) -> &str {
        if self.name.is_empty() {
            &self.selected
        } else {
            &self.name
        }
    }

    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(method: &str, target: &str) -> String {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let method = Method::from_bytes(method.as_bytes()).unwrap_or_default();
        let i = RequestInfo::parse(&method, path, query);
        if !i.is_resource {
            return format!("{} path {}", i.verb, i.path);
        }
        format!(
            "{} {}|{}|{}|{}|{}|{}|{}",
            i.verb, i.group, i.version, i.namespace, i.resource, i.name, i.subresource, i.tail
        )
    }

    #[test]
    fn paths_are_read_as_upstream_reads_them() {
        for (m, t, want) in [
            ("GET", "/api/v1/pods", "list |v1||pods|||"),
            ("GET", "/api/v1/pods?watch=true", "watch |v1||pods|||"),
            ("GET", "/api/v1/pods?watch=false", "list |v1||pods|||"),
            ("GET", "/api/v1/namespaces/a/pods/b", "get |v1|a|pods|b||"),
            ("GET", "/api/v1/namespaces", "list |v1||namespaces|||"),
            ("GET", "/api/v1/namespaces/a", "get |v1|a|namespaces|a||"),
            (
                "PUT",
                "/api/v1/namespaces/a/finalize",
                "update |v1|a|namespaces|a|finalize|",
            ),
            (
                "POST",
                "/api/v1/namespaces/a/pods/b/exec?command=ls",
                "create |v1|a|pods|b|exec|",
            ),
            (
                "GET",
                "/api/v1/nodes/n/proxy/logs/x",
                "get |v1||nodes|n|proxy|logs/x",
            ),
            (
                "DELETE",
                "/apis/apps/v1/namespaces/a/deployments",
                "deletecollection apps|v1|a|deployments|||",
            ),
            (
                "PATCH",
                "/apis/apps/v1/namespaces/a/deployments/d/scale",
                "patch apps|v1|a|deployments|d|scale|",
            ),
            (
                "GET",
                "/api/v1/watch/namespaces/a/pods",
                "watch |v1|a|pods|||",
            ),
            ("GET", "/apis/apps/v1", "get path /apis/apps/v1"),
            ("GET", "/apis", "get path /apis"),
            ("GET", "/healthz/ping", "get path /healthz/ping"),
            (
                "GET",
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:node%3Ax",
                "get rbac.authorization.k8s.io|v1||clusterroles|system:node:x||",
            ),
        ] {
            assert_eq!(p(m, t), want, "{m} {t}");
        }
    }

    #[test]
    fn one_name_of_a_field_selector_is_the_name_and_nothing_else_is() {
        let name = |query: &str| {
            let path = "/api/v1/namespaces/a/secrets";
            RequestInfo::parse(&Method::GET, path, query).selected
        };
        assert_eq!(name("fieldSelector=metadata.name%3Dx"), "x");
        assert_eq!(name("fieldSelector=metadata.name==x&watch=1"), "x");
        assert_eq!(name("fi%65ldSelector=metadata.name%3Dx,type%3DOpaque"), "x");
        for no in [
            "fieldSelector=metadata.name!%3Dx",
            "fieldSelector=metadata.name%3Dx,metadata.name%3Dy",
            "fieldSelector=&fieldSelector=metadata.name%3Dx",
            "labelSelector=metadata.name%3Dx",
            "fieldSelector=metadata.name%3D",
            "fieldSelector=metadata.name",
            "fieldSelector=metadata.name%3Da/b",
            "fieldSelector=metadata.name%3D..",
            "FieldSelector=metadata.name%3Dx",
            "fieldSelector=x.metadata.name%3Dx",
        ] {
            assert_eq!(name(no), "", "{no}");
        }
        let all = RequestInfo::parse(
            &Method::DELETE,
            "/api/v1/namespaces/a/secrets",
            "fieldSelector=metadata.name%3Dx",
        );
        assert_eq!((all.verb, all.selected.as_str()), ("deletecollection", ""));
        let old = RequestInfo::parse(
            &Method::GET,
            "/api/v1/watch/namespaces/a/secrets",
            "fieldSelector=metadata.name%3Dx",
        );
        assert_eq!((old.verb, old.selected.as_str()), ("watch", ""));
    }

    #[test]
    fn escapes_are_undone_and_broken_ones_kept() {
        assert_eq!(unescape("a%3Db+c%zz%4", true), "a=b c%zz%4");
        assert_eq!(
            query_pairs("a=1&b&c=x%20y"),
            vec![
                ("a".into(), "1".into()),
                ("b".into(), String::new()),
                ("c".into(), "x y".into())
            ]
        );
    }
}
