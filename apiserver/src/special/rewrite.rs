//! What a page behind a proxy says about its own place: links in HTML and redirects, put below the proxy's path (upstream's
//! k8s.io/apimachinery/pkg/util/proxy/transport.go). Pure, and streaming: a page goes through as it comes.

use std::fmt::Write;

/// Where the proxied server is for the client, and for us.
#[derive(Debug, Clone)]
pub struct Place {
    /// The path before what the server sees, e.g. `/api/v1/namespaces/a/pods/b/proxy`; without a slash at the end.
    pub prefix: String,
    /// `host:port` of the server, as it would name itself.
    pub host: String,
    /// The host that the client asked.
    pub asked: String,
}

impl Place {
    /// A link or redirect as the client has to follow it; none when it is to stay as it is.
    pub fn link(&self, url: &str) -> Option<String> {
        let rest = match url.split_once("://") {
            Some((scheme, rest))
                if matches!(scheme.to_ascii_lowercase().as_str(), "http" | "https") =>
            {
                Some(rest)
            }
            Some((scheme, _)) if scheme.bytes().all(|b| b.is_ascii_alphanumeric()) => return None,
            _ => url.strip_prefix("//"),
        };
        let path = match rest {
            Some(rest) => {
                let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
                let (host, path) = rest.split_at(end);
                if host != self.host && host != self.asked {
                    return None;
                }
                path
            }
            None => url,
        };
        if !path.starts_with('/') {
            // Relative: it stays below the page's own place. A bare host means its root.
            return rest.map(|_| format!("{}/{path}", self.prefix));
        }
        let below = path
            .strip_prefix(&*self.prefix)
            .is_some_and(|r| r.is_empty() || r.starts_with(['/', '?', '#']));
        if below {
            return rest.map(|_| path.to_string());
        }
        let end = path.find(['?', '#']).unwrap_or(path.len());
        let (path, query) = path.split_at(end);
        Some(format!("{}{}{query}", self.prefix, clean(path)))
    }
}

/// Go's path.Clean of an absolute path, but for a slash at the end, which stays: no `.`, no `..`, no empty elements.
pub fn clean(path: &str) -> String {
    let mut out: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                out.pop();
            }
            p => out.push(p),
        }
    }
    let mut joined = format!("/{}", out.join("/"));
    if path.ends_with('/') && joined.len() > 1 {
        joined.push('/');
    }
    joined
}

/// A decoded path, escaped as Go's URL.EscapedPath does it.
pub fn escape_path(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for b in path.bytes() {
        if b.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&b) {
            out.push(b as char);
        } else {
            let _ = write!(out, "%{b:02X}");
        }
    }
    out
}

/// The attributes of an element that hold a link.
fn linking(tag: &str) -> &'static [&'static str] {
    match tag {
        "a" | "area" | "base" | "link" => &["href"],
        "applet" => &["codebase"],
        "audio" | "embed" | "script" | "source" => &["src"],
        "blockquote" | "del" | "ins" | "q" => &["cite"],
        "body" => &["background"],
        "button" => &["formaction"],
        "command" => &["icon"],
        "form" => &["action"],
        "frame" | "iframe" => &["longdesc", "src"],
        "head" => &["profile"],
        "html" => &["manifest"],
        "img" => &["longdesc", "src", "usemap"],
        "input" => &["formaction", "src", "usemap"],
        "object" => &["classid", "codebase", "data", "usemap"],
        "video" => &["poster", "src"],
        _ => &[],
    }
}

/// A tag longer than this is passed on as it is.
const LONGEST: usize = 8 * 1024;

/// Rewrites a page piece by piece.
pub struct Html {
    place: Place,
    held: Vec<u8>,
    /// Inside of an element whose text is no HTML, up to this closing tag.
    raw: Option<&'static str>,
}

impl Html {
    /// A page at this place.
    pub fn new(place: Place) -> Self {
        Self {
            place,
            held: Vec::new(),
            raw: None,
        }
    }

    /// The next piece of the page; what cannot be told yet is held back.
    pub fn push(&mut self, piece: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(piece);
        let held = std::mem::take(&mut self.held);
        let mut out = Vec::with_capacity(held.len() + 64);
        let mut at = 0;
        while at < held.len() {
            let rest = &held[at..];
            if let Some(end) = self.raw {
                match find_tag(rest, end) {
                    Some(n) => {
                        out.extend_from_slice(&rest[..n]);
                        at += n;
                        self.raw = None;
                        continue;
                    }
                    None => {
                        // The closing tag may be cut in two.
                        let keep = (end.len() - 1).min(rest.len());
                        out.extend_from_slice(&rest[..rest.len() - keep]);
                        self.held = rest[rest.len() - keep..].to_vec();
                        return out;
                    }
                }
            }
            let Some(open) = rest.iter().position(|b| *b == b'<') else {
                out.extend_from_slice(rest);
                return out;
            };
            out.extend_from_slice(&rest[..open]);
            at += open;
            let rest = &held[at..];
            match whole(rest) {
                Some(1) => {
                    out.push(b'<');
                    at += 1;
                }
                Some(n) => {
                    self.tag(&rest[..n], &mut out);
                    at += n;
                }
                None if rest.len() > LONGEST => {
                    out.extend_from_slice(rest);
                    return out;
                }
                None => {
                    self.held = rest.to_vec();
                    return out;
                }
            }
        }
        out
    }

    /// What was held back when the page ended.
    pub fn end(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    fn tag(&mut self, tag: &[u8], out: &mut Vec<u8>) {
        let Ok(text) = std::str::from_utf8(tag) else {
            out.extend_from_slice(tag);
            return;
        };
        let inner = &text[1..text.len() - 1];
        let end = inner
            .find(|c: char| c.is_ascii_whitespace() || c == '/')
            .unwrap_or(inner.len());
        let name = inner[..end].to_ascii_lowercase();
        self.raw = match name.as_str() {
            "script" => Some("</script"),
            "style" => Some("</style"),
            "textarea" => Some("</textarea"),
            "title" => Some("</title"),
            _ => None,
        };
        let wanted = linking(&name);
        if wanted.is_empty() {
            out.extend_from_slice(tag);
            return;
        }
        let mut done = 1;
        for (attribute, from, to) in attributes(text, end + 1) {
            if !wanted.iter().any(|w| attribute.eq_ignore_ascii_case(w)) {
                continue;
            }
            let value = text[from..to].trim();
            if let Some(link) = self.place.link(&value.replace("&amp;", "&")) {
                out.extend_from_slice(text[done - 1..from].as_bytes());
                out.extend_from_slice(quote(&link).as_bytes());
                done = to + 1;
            }
        }
        out.extend_from_slice(text[done - 1..].as_bytes());
    }
}

/// A value that cannot leave its quotes, whichever they are.
fn quote(value: &str) -> String {
    value
        .replace('&', "&amp;")
        .replace('"', "&#34;")
        .replace('\'', "&#39;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// Where a closing tag begins, in any case.
fn find_tag(text: &[u8], tag: &str) -> Option<usize> {
    text.windows(tag.len())
        .position(|w| w.eq_ignore_ascii_case(tag.as_bytes()))
}

/// The length of the tag or comment at the beginning, if it is there whole. What begins no tag is a `<` alone.
fn whole(text: &[u8]) -> Option<usize> {
    if text.starts_with(b"<!--") {
        return text
            .windows(3)
            .skip(2)
            .position(|w| w == b"-->")
            .map(|n| n + 5);
    }
    match text.get(1) {
        None => return None,
        Some(b) if b.is_ascii_alphabetic() || matches!(b, b'/' | b'!' | b'?') => {}
        Some(_) => return Some(1),
    }
    if b"<!--".starts_with(text) {
        return None;
    }
    let mut quoted = None;
    let mut after_equals = false;
    for (i, b) in text.iter().enumerate().skip(1) {
        match quoted {
            Some(q) if *b == q => quoted = None,
            Some(_) => {}
            None if matches!(b, b'"' | b'\'') && after_equals => quoted = Some(*b),
            None if *b == b'>' => return Some(i + 1),
            None => {}
        }
        after_equals = *b == b'=' || (after_equals && b.is_ascii_whitespace());
    }
    None
}

/// Name, begin and end of the value of each attribute of a tag from `at` on.
fn attributes(tag: &str, at: usize) -> Vec<(&str, usize, usize)> {
    let b = tag.as_bytes();
    let last = b.len() - 1;
    let mut out = Vec::new();
    let mut i = at;
    while i < last {
        while i < last && (b[i].is_ascii_whitespace() || b[i] == b'/') {
            i += 1;
        }
        let name = i;
        while i < last && !b[i].is_ascii_whitespace() && b[i] != b'=' && b[i] != b'/' {
            i += 1;
        }
        let end = i;
        while i < last && b[i].is_ascii_whitespace() {
            i += 1;
        }
        if i >= last || b[i] != b'=' {
            if end == name {
                i += 1;
            }
            continue;
        }
        i += 1;
        while i < last && b[i].is_ascii_whitespace() {
            i += 1;
        }
        let (from, to) = match b.get(i) {
            Some(q @ (b'"' | b'\'')) if i < last => {
                let from = i + 1;
                let to = b[from..last]
                    .iter()
                    .position(|c| c == q)
                    .map_or(last, |n| from + n);
                i = (to + 1).min(last);
                (from, to)
            }
            _ => {
                let from = i;
                while i < last && !b[i].is_ascii_whitespace() {
                    i += 1;
                }
                (from, i)
            }
        };
        out.push((&tag[name..end], from, to));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            prefix: "/api/v1/namespaces/a/pods/b:1080/proxy".into(),
            host: "10.42.0.7:1080".into(),
            asked: "skiff:6443".into(),
        }
    }

    #[test]
    fn links_of_the_server_itself_get_below_the_proxy() {
        let p = "/api/v1/namespaces/a/pods/b:1080/proxy";
        for (url, want) in [
            ("/rewriteme", format!("{p}/rewriteme")),
            ("/x/?a=b#c", format!("{p}/x/?a=b#c")),
            ("/../../x", format!("{p}/x")),
            ("http://10.42.0.7:1080/x", format!("{p}/x")),
            ("//10.42.0.7:1080/x", format!("{p}/x")),
            ("https://skiff:6443/x", format!("{p}/x")),
            ("http://10.42.0.7:1080", format!("{p}/")),
            ("http://10.42.0.7:1080?q", format!("{p}/?q")),
            (
                "http://skiff:6443/api/v1/namespaces/a/pods/b:1080/proxy/x",
                format!("{p}/x"),
            ),
        ] {
            assert_eq!(place().link(url), Some(want), "{url}");
        }
        for stays in [
            "x/y",
            "../x",
            "",
            "#top",
            "?q",
            "mailto:x@y",
            "javascript:void(0)",
            "data:text/html,<a>",
            "http://example.com/x",
            "//example.com/x",
            "ftp://10.42.0.7:1080/x",
            "/api/v1/namespaces/a/pods/b:1080/proxy/x",
        ] {
            assert_eq!(place().link(stays), None, "{stays}");
        }
    }

    fn rewritten(page: &str, piece: usize) -> String {
        let mut html = Html::new(place());
        let mut out = Vec::new();
        for chunk in page.as_bytes().chunks(piece) {
            out.extend(html.push(chunk));
        }
        out.extend(html.end());
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn a_page_is_rewritten_the_same_in_pieces_of_any_size() {
        let p = place().prefix;
        let page = r#"<!DOCTYPE html><!-- <a href="/no"> --><html><head><title>a <a href="/no"></title><base href='/b/'>
<script src=/s.js>if (1 < 2) { x = '<a href="/no">' }</script><style>a > b { background: url(/no) }</style></head>
<body><A HREF="/x?a=1&amp;b=2" class="/no">1 < 2</A><img alt='a>b' src="/i.png"/><form action = "/f"><a href=rel><a href>
<a title="&lt;" href='http://example.com/'>y</a><p data-src="/no">é</p></body></html>"#;
        let want = page
            .replace("'/b/'", &format!("'{p}/b/'"))
            .replace("src=/s.js", &format!("src={p}/s.js"))
            .replace("\"/x?a", &format!("\"{p}/x?a"))
            .replace("\"/i.png", &format!("\"{p}/i.png"))
            .replace("\"/f\"", &format!("\"{p}/f\""));
        for piece in [1, 2, 3, 7, 64, 10_000] {
            assert_eq!(rewritten(page, piece), want, "{piece}");
        }
    }

    #[test]
    fn a_link_cannot_leave_its_quotes() {
        let out = rewritten("<a href='/\"><script>'>", 100);
        assert_eq!(out.matches('<').count(), 1, "{out}");
    }

    #[test]
    fn a_tag_that_does_not_end_is_not_held_for_ever() {
        let mut html = Html::new(place());
        let mut got = 0;
        for _ in 0..64 {
            got += html.push(&[b'<'; 4096]).len();
            got += html
                .push(format!("<a {}", "x".repeat(4096)).as_bytes())
                .len();
        }
        assert!(got > 64 * 4096 && html.held.len() <= LONGEST + 8192);
    }

    #[test]
    fn paths_are_cleaned_and_escaped() {
        for (path, want) in [
            ("/a/../../b", "/b"),
            ("/../../../etc/passwd", "/etc/passwd"),
            ("//a//b/", "/a/b/"),
            ("/a/./b/..", "/a"),
            ("", "/"),
            ("/", "/"),
            ("/..", "/"),
        ] {
            assert_eq!(clean(path), want, "{path}");
        }
        assert_eq!(escape_path("/a b/ü?#%"), "/a%20b/%C3%BC%3F%23%25");
    }

    proptest::proptest! {
        #[test]
        fn any_page_goes_through(page in "[<>a-z/'\"= !-]{0,80}", piece in 1usize..9) {
            let out = rewritten(&page, piece);
            proptest::prop_assert_eq!(rewritten(&page, 10_000), out);
        }
        #[test]
        fn no_path_leaves_its_root(path in "[a./%]{0,30}") {
            let c = clean(&path);
            proptest::prop_assert!(c.starts_with('/') && !c.split('/').any(|p| p == ".." || p == "."), "{}", c);
        }
    }
}
