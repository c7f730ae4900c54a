//! `$(VAR)` in commands, arguments and environment (upstream third_party/forked/golang/expansion). Pure.

/// Replaces `$(NAME)` by what `lookup` gives; unknown names stay as they are, `$$` is one dollar sign.
pub fn expand(input: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(input.len());
    let mut rest = input;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        match rest.as_bytes().first() {
            Some(b'$') => {
                out.push('$');
                rest = &rest[1..];
            }
            Some(b'(') => match rest.find(')') {
                Some(end) => {
                    let name = &rest[1..end];
                    match lookup(name) {
                        Some(v) => out.push_str(&v),
                        None => {
                            out.push_str("$(");
                            out.push_str(name);
                            out.push(')');
                        }
                    }
                    rest = &rest[end + 1..];
                }
                None => {
                    out.push_str("$(");
                    rest = &rest[1..];
                }
            },
            _ => out.push('$'),
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::expand;

    #[test]
    fn references_are_replaced_as_upstream_replaces_them() {
        let look = |n: &str| match n {
            "A" => Some("1".to_string()),
            "EMPTY" => Some(String::new()),
            _ => None,
        };
        for (input, want) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(B)", "$(B)"),
            ("$(A", "$(A"),
            ("$A", "$A"),
            ("$", "$"),
            ("-$(EMPTY)-", "--"),
            ("$($(A))", "$($(A))"),
        ] {
            assert_eq!(expand(input, look), want, "{input}");
        }
    }

    proptest::proptest! {
        #[test]
        fn text_without_dollars_is_left_alone(text in "[^$]{0,40}", other in ".{0,40}") {
            proptest::prop_assert_eq!(expand(&text, |_| None), text);
            let _ = expand(&other, |n| Some(n.to_string()));
        }
    }
}
