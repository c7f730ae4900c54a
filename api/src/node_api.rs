//! Paths of a node's own API (the kubelet's, on :10250) as rights see them. Owns their reading; both who serves them and who
//! passes requests on to them ask here.

/// Is the path this one, or below it?
pub fn below(path: &str, top: &str) -> bool {
    path.strip_prefix(top)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Does the path run something in a container, or open a way into a pod? A WebSocket asks for it with GET, and upstream takes
/// `get` of nodes/proxy for enough; in Skiff what it does counts, as the API server has it for pods/exec: it is a create.
pub fn acts(path: &str) -> bool {
    ["/exec", "/attach", "/portForward", "/run", "/cri"]
        .iter()
        .any(|top| below(path, top))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_is_known_by_its_path() {
        for yes in [
            "/exec/a/b/c",
            "/run/a/b/c",
            "/attach",
            "/portForward/a/b",
            "/cri/exec/x",
        ] {
            assert!(acts(yes), "{yes}");
        }
        for no in ["/runningpods/", "/pods", "/executor", "/logs/exec", ""] {
            assert!(!acts(no), "{no}");
        }
    }
}
