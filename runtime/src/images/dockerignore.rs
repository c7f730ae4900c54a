//! Owns `.dockerignore` and the wild cards of COPY and ADD: pure matching of paths. Must not read files.

/// The patterns of a `.dockerignore`; the last one that matches decides (`!` takes back).
#[derive(Debug, Clone, Default)]
pub struct Ignore {
    patterns: Vec<(bool, Vec<String>)>,
}

impl Ignore {
    /// Parse the file's text.
    pub fn parse(text: &str) -> Self {
        let mut patterns = Vec::new();
        for l in text.strip_prefix('\u{feff}').unwrap_or(text).lines() {
            let l = l.trim();
            if l.is_empty() || l.starts_with('#') {
                continue;
            }
            let (negated, p) = match l.strip_prefix('!') {
                Some(p) => (true, p.trim()),
                None => (false, l),
            };
            let mut parts: Vec<String> = Vec::new();
            for c in p.split('/') {
                match c {
                    "" | "." => {}
                    ".." => drop(parts.pop()),
                    c => parts.push(c.to_owned()),
                }
            }
            if !parts.is_empty() {
                patterns.push((negated, parts));
            }
        }
        Ignore { patterns }
    }

    /// Is this path (relative, parts) left out of the context? A pattern that matches a directory matches all in it.
    pub fn excludes(&self, path: &[&str]) -> bool {
        let mut excluded = false;
        for (negated, pattern) in &self.patterns {
            if *negated == excluded && (1..=path.len()).any(|n| matches_path(pattern, &path[..n])) {
                excluded = !negated;
            }
        }
        excluded
    }

    /// May something below an excluded directory still be in the context?
    pub fn has_exceptions(&self) -> bool {
        self.patterns.iter().any(|(n, _)| *n)
    }
}

/// `**` stands for any number of directories.
fn matches_path(pattern: &[String], path: &[&str]) -> bool {
    match (pattern.split_first(), path.split_first()) {
        (None, None) => true,
        (Some((p, rest)), _) if p == "**" => {
            // "a/**" needs something below a, "**/a" may match at the top.
            (rest.is_empty() && !path.is_empty())
                || (0..=path.len()).any(|n| !rest.is_empty() && matches_path(rest, &path[n..]))
        }
        (Some((p, rest)), Some((c, below))) => matches_name(p, c) && matches_path(rest, below),
        _ => false,
    }
}

/// Go's filepath.Match for one name: `*`, `?`, `[a-z]`, `[^a]`, and `\` before a plain character.
pub fn matches_name(pattern: &str, name: &str) -> bool {
    let p: Vec<char> = pattern.chars().collect();
    let n: Vec<char> = name.chars().collect();
    // (pattern position, name position) to return to when what follows a star does not fit.
    let (mut pi, mut ni, mut back) = (0, 0, None);
    loop {
        let step = match p.get(pi) {
            None if ni == n.len() => return true,
            Some('*') => {
                back = Some((pi + 1, ni));
                pi += 1;
                continue;
            }
            Some(_) if ni < n.len() => one(&p, pi, n[ni]),
            _ => None,
        };
        match (step, back) {
            (Some(next), _) => (pi, ni) = (next, ni + 1),
            (None, Some((bp, bn))) if bn < n.len() => {
                back = Some((bp, bn + 1));
                (pi, ni) = (bp, bn + 1);
            }
            _ => return false,
        }
    }
}

/// Does the pattern's element at `i` fit `c`? Returns where the next element starts.
fn one(p: &[char], i: usize, c: char) -> Option<usize> {
    match p[i] {
        '?' => Some(i + 1),
        '\\' => (p.get(i + 1) == Some(&c)).then_some(i + 2),
        '[' => {
            let mut j = i + 1;
            let negated = p.get(j) == Some(&'^');
            if negated {
                j += 1;
            }
            let mut hit = false;
            let mut first = true;
            while first || p.get(j) != Some(&']') {
                first = false;
                let lo = *p.get(j)?;
                let mut hi = lo;
                if p.get(j + 1) == Some(&'-') && p.get(j + 2).is_some_and(|x| *x != ']') {
                    hi = p[j + 2];
                    j += 2;
                }
                hit |= lo <= c && c <= hi;
                j += 1;
            }
            (hit != negated).then_some(j + 1)
        }
        x => (x == c).then_some(i + 1),
    }
}

/// Does a COPY source use wild cards?
pub fn has_wildcards(s: &str) -> bool {
    s.contains(['*', '?', '['])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_match_as_go_matches_them() {
        for (p, n, want) in [
            ("*", "abc", true),
            ("*.go", "a.go", true),
            ("*.go", "a.rs", false),
            ("a?c", "abc", true),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("a*b*c", "aXbYbc", true),
            ("", "", true),
            ("[", "[", false),
        ] {
            assert_eq!(matches_name(p, n), want, "{p} {n}");
        }
    }

    #[test]
    fn the_last_pattern_that_matches_decides() {
        let i = Ignore::parse(
            "# comment\nnode_modules\n**/*.log\n/target/\n!keep.log\ndocs/**\n!docs/README.md\n./x/../y\n",
        );
        for (path, want) in [
            ("node_modules", true),
            ("node_modules/a/b", true),
            ("src/node_modules", false),
            ("a.log", true),
            ("x/y/a.log", true),
            ("keep.log", false),
            ("target/debug", true),
            ("docs", false),
            ("docs/a", true),
            ("docs/README.md", false),
            ("src/main.rs", false),
            ("y", true),
        ] {
            assert_eq!(
                i.excludes(&path.split('/').collect::<Vec<_>>()),
                want,
                "{path}"
            );
        }
        assert!(i.has_exceptions());
    }

    proptest! {
        #[test]
        fn a_name_matches_itself_and_nothing_panics(n in "[a-z.]{1,10}", p in "[a-z*?\\[\\]^\\\\-]{0,10}") {
            prop_assert!(matches_name(&n, &n));
            let _ = matches_name(&p, &n);
        }
    }
}
