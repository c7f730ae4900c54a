//! Owns reading a Dockerfile: lines, directives, instructions, words and variables. Pure: text in, instructions out.
//! Must not build. The rules are those of Docker's reference for the Dockerfile frontend 1.x; every error has a line.

use super::healthcheck::{self, Healthcheck};
use super::{ImageError, Result};
use std::collections::BTreeMap;

/// One instruction with the line it starts at (from 1).
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    pub number: usize,
    /// The text as written, joined: for progress and history.
    pub text: String,
    pub instruction: Instruction,
}

/// A command in exec form (JSON) or shell form.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    Exec(Vec<String>),
    Shell(String),
}

/// `--name=value` before the arguments; `--name` alone has an empty value.
pub type Flags = BTreeMap<String, String>;

/// What a line says. Words are not expanded yet: their variables depend on the lines before.
#[derive(Debug, Clone, PartialEq)]
pub enum Instruction {
    From {
        /// Of --platform; not expanded.
        platform: Option<String>,
        image: String,
        name: Option<String>,
    },
    Run {
        flags: Flags,
        command: Command,
    },
    /// COPY, or ADD with `add`. The last of `paths` is the destination.
    Copy {
        add: bool,
        flags: Flags,
        paths: Vec<String>,
    },
    Env(Vec<(String, String)>),
    Label(Vec<(String, String)>),
    Arg(Vec<(String, Option<String>)>),
    Workdir(String),
    User(String),
    Expose(Vec<String>),
    Volume(Vec<String>),
    Entrypoint(Command),
    Cmd(Command),
    Shell(Vec<String>),
    StopSignal(String),
    Maintainer(String),
    Healthcheck(Healthcheck),
    /// An instruction for builds on this image, as written.
    Onbuild(String),
}

/// A parsed file.
#[derive(Debug, Clone, PartialEq)]
pub struct Dockerfile {
    /// For errors.
    pub file: String,
    pub escape: char,
    pub lines: Vec<Line>,
}

impl Dockerfile {
    /// Parse; `file` is what errors call it.
    pub fn parse(text: &str, file: &str) -> Result<Self> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let escape = directives(text).map_err(|(line, message)| ImageError::Dockerfile {
            file: file.into(),
            line,
            message,
        })?;
        let mut out = Dockerfile {
            file: file.to_owned(),
            escape,
            lines: Vec::new(),
        };
        let mut pending: Option<(usize, String)> = None;
        for (i, raw) in text.lines().enumerate() {
            let number = i + 1;
            let trimmed = raw.trim();
            // Comments vanish, also between continued lines; empty lines do not end a continuation (Docker warns).
            if trimmed.starts_with('#') || (trimmed.is_empty()) {
                continue;
            }
            let (start, mut joined) = pending.take().unwrap_or((number, String::new()));
            let body = if joined.is_empty() {
                raw.trim_start()
            } else {
                raw
            };
            let end = body.trim_end();
            match end.strip_suffix(escape) {
                Some(rest) => {
                    joined.push_str(rest);
                    pending = Some((start, joined));
                }
                None => {
                    joined.push_str(end);
                    out.push(start, &joined)?;
                }
            }
        }
        if let Some((start, joined)) = pending
            && !joined.trim().is_empty()
        {
            out.push(start, &joined)?;
        }
        if !out
            .lines
            .iter()
            .any(|l| matches!(l.instruction, Instruction::From { .. }))
        {
            return Err(out.error(1, "it has no FROM instruction"));
        }
        Ok(out)
    }

    /// An error about a line of this file.
    pub fn error(&self, line: usize, message: impl Into<String>) -> ImageError {
        ImageError::Dockerfile {
            file: self.file.clone(),
            line,
            message: message.into(),
        }
    }

    /// An ONBUILD trigger of a base image, as a line of this file.
    pub fn trigger(&self, number: usize, text: &str) -> Result<Line> {
        let (name, rest) = split_name(text);
        let instruction = trigger(&name, rest, self.escape)
            .map_err(|m| self.error(number, format!("ONBUILD of the base image: {m}")))?;
        Ok(Line {
            number,
            text: format!("{name} {rest}").trim().to_owned(),
            instruction,
        })
    }

    fn push(&mut self, number: usize, text: &str) -> Result<()> {
        let (name, rest) = split_name(text);
        let from_seen = self
            .lines
            .iter()
            .any(|l| matches!(l.instruction, Instruction::From { .. }));
        if !from_seen && !matches!(name.as_str(), "FROM" | "ARG") {
            return Err(self.error(
                number,
                format!("{name} before the first FROM; only ARG may stand there"),
            ));
        }
        let instruction =
            instruction(&name, rest, self.escape).map_err(|m| self.error(number, m))?;
        self.lines.push(Line {
            number,
            text: format!("{name} {rest}").trim().to_owned(),
            instruction,
        });
        Ok(())
    }
}

/// The instruction's name in capitals, and the rest of the line.
fn split_name(text: &str) -> (String, &str) {
    let (word, rest) = match text.find(char::is_whitespace) {
        Some(i) => (&text[..i], text[i..].trim()),
        None => (text, ""),
    };
    (word.to_ascii_uppercase(), rest)
}

/// The escape character that the directives at the top choose.
fn directives(text: &str) -> std::result::Result<char, (usize, String)> {
    // Directives are comments at the very top: the first line that is none ends them.
    let mut escape = '\\';
    for (i, l) in text.lines().enumerate() {
        let Some((key, value)) = l.trim().strip_prefix('#').and_then(|c| c.split_once('=')) else {
            break;
        };
        match key.trim().to_ascii_lowercase().as_str() {
            "escape" => {
                escape = match value.trim() {
                    "\\" => '\\',
                    "`" => '`',
                    other => {
                        return Err((
                            i + 1,
                            format!("invalid escape directive {other:?}: must be \\ or `"),
                        ));
                    }
                };
            }
            // Another frontend is another language.
            "syntax" => {
                let image = value.trim();
                let name = image.trim_start_matches("docker.io/");
                let name = name.split([':', '@']).next().unwrap_or_default();
                if !matches!(name, "docker/dockerfile" | "docker/dockerfile-upstream") {
                    return Err((
                        i + 1,
                        format!(
                            "the syntax directive {image:?} is not supported: only docker/dockerfile is"
                        ),
                    ));
                }
            }
            // For the linter.
            "check" => {}
            _ => break,
        }
    }
    Ok(escape)
}

type Parsed = std::result::Result<Instruction, String>;

fn instruction(name: &str, rest: &str, escape: char) -> Parsed {
    let need = || {
        if rest.is_empty() {
            Err(format!("{name} needs an argument"))
        } else {
            Ok(())
        }
    };
    if rest.contains("<<") && matches!(name, "RUN" | "COPY" | "ADD") && has_heredoc(rest) {
        return Err(format!(
            "{name} with a here-document is not supported; use && or a file"
        ));
    }
    match name {
        "FROM" => {
            let (flags, rest) = take_flags(rest);
            check_flags(name, &flags, &["platform"])?;
            let platform = flags.get("platform").cloned();
            let words: Vec<&str> = rest.split_whitespace().collect();
            match words.as_slice() {
                [image] => Ok(Instruction::From {
                    platform,
                    image: (*image).into(),
                    name: None,
                }),
                [image, as_, name] if as_.eq_ignore_ascii_case("as") => Ok(Instruction::From {
                    platform,
                    image: (*image).into(),
                    name: Some(name.to_ascii_lowercase()),
                }),
                _ => Err("FROM takes one image, or IMAGE AS NAME".into()),
            }
        }
        "RUN" => {
            let (flags, rest) = take_flags(rest);
            if flags.contains_key("mount") {
                return Err("RUN --mount is not supported; COPY the files instead".into());
            }
            check_flags(name, &flags, &["network"])?;
            match flags.get("network").map(String::as_str) {
                None | Some("default" | "host" | "none") => {}
                Some(n) => {
                    return Err(format!(
                        "RUN --network={n} is not known; use default, host or none"
                    ));
                }
            }
            if rest.is_empty() {
                return Err("RUN needs an argument".into());
            }
            Ok(Instruction::Run {
                flags,
                command: command(rest)?,
            })
        }
        "COPY" | "ADD" => {
            let (flags, rest) = take_flags(rest);
            let known: &[&str] = if name == "COPY" {
                &["from", "chown", "chmod", "link"]
            } else {
                &["chown", "chmod", "link"]
            };
            check_flags(name, &flags, known)?;
            let paths = match json_list(rest) {
                Some(list) => list,
                None => split_words(rest, escape)?,
            };
            if paths.len() < 2 {
                return Err(format!(
                    "{name} needs at least one source and a destination"
                ));
            }
            Ok(Instruction::Copy {
                add: name == "ADD",
                flags,
                paths,
            })
        }
        "ENV" => pairs(name, rest, escape).map(Instruction::Env),
        "LABEL" => pairs(name, rest, escape).map(Instruction::Label),
        "ARG" => {
            need()?;
            let mut out = Vec::new();
            for w in split_words(rest, escape)? {
                let (k, v) = match w.split_once('=') {
                    Some((k, v)) => (k.to_owned(), Some(v.to_owned())),
                    None => (w, None),
                };
                if k.is_empty() {
                    return Err("ARG with an empty name".into());
                }
                out.push((k, v));
            }
            Ok(Instruction::Arg(out))
        }
        "WORKDIR" => need().map(|()| Instruction::Workdir(rest.into())),
        "USER" => {
            need()?;
            if rest.split_whitespace().count() != 1 {
                return Err("USER takes exactly one argument".into());
            }
            Ok(Instruction::User(rest.into()))
        }
        "EXPOSE" => need().and_then(|()| Ok(Instruction::Expose(split_words(rest, escape)?))),
        "VOLUME" => {
            need()?;
            let list = match json_list(rest) {
                Some(l) => l,
                None => split_words(rest, escape)?,
            };
            Ok(Instruction::Volume(list))
        }
        "ENTRYPOINT" => Ok(Instruction::Entrypoint(command(rest)?)),
        "CMD" => Ok(Instruction::Cmd(command(rest)?)),
        "SHELL" => match json_list(rest) {
            Some(l) if !l.is_empty() => Ok(Instruction::Shell(l)),
            _ => Err("SHELL takes a JSON list, as in SHELL [\"/bin/sh\", \"-c\"]".into()),
        },
        "STOPSIGNAL" => need().map(|()| Instruction::StopSignal(rest.into())),
        "MAINTAINER" => need().map(|()| Instruction::Maintainer(rest.into())),
        "HEALTHCHECK" => {
            let (flags, rest) = take_flags(rest);
            check_flags(name, &flags, &healthcheck::FLAGS)?;
            healthcheck::parse(&flags, rest, command).map(Instruction::Healthcheck)
        }
        "ONBUILD" => {
            need()?;
            let (name, inner) = split_name(rest);
            // What is wrong with it is said here, not to whoever builds on the image.
            trigger(&name, inner, escape)?;
            Ok(Instruction::Onbuild(format!("{name} {inner}")))
        }
        _ => Err(format!("unknown instruction {name:?}")),
    }
}

fn trigger(name: &str, rest: &str, escape: char) -> Parsed {
    if matches!(name, "ONBUILD" | "FROM" | "MAINTAINER") {
        return Err(format!("{name} isn't allowed as an ONBUILD trigger"));
    }
    instruction(name, rest, escape)
}

fn has_heredoc(rest: &str) -> bool {
    rest.split_whitespace().any(|w| {
        w.strip_prefix("<<").is_some_and(|w| {
            let w = w.strip_prefix('-').unwrap_or(w).trim_matches(['"', '\'']);
            !w.is_empty() && w.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        })
    })
}

fn check_flags(name: &str, flags: &Flags, known: &[&str]) -> std::result::Result<(), String> {
    if let Some(k) = flags.keys().find(|k| !known.contains(&k.as_str())) {
        return Err(format!(
            "{name} --{k} is not supported; known here: --{}",
            known.join(", --")
        ));
    }
    for (k, v) in flags {
        match (k.as_str(), v.as_str()) {
            ("link", "" | "true" | "false") => {}
            ("link", v) => return Err(format!("{name} --link={v}: it is true or false")),
            (k, "") => return Err(format!("{name} --{k}: a value is missing")),
            _ => {}
        }
    }
    Ok(())
}

fn take_flags(mut rest: &str) -> (Flags, &str) {
    let mut flags = Flags::new();
    loop {
        rest = rest.trim_start();
        let Some(flag) = rest.strip_prefix("--") else {
            return (flags, rest);
        };
        let end = flag.find(char::is_whitespace).unwrap_or(flag.len());
        let (k, v) = flag[..end].split_once('=').unwrap_or((&flag[..end], ""));
        flags.insert(k.to_ascii_lowercase(), v.trim_matches('"').to_owned());
        rest = &flag[end..];
    }
}

/// Exec form if it is a JSON list of strings; anything else is shell form, as Docker has it.
fn command(rest: &str) -> std::result::Result<Command, String> {
    Ok(match json_list(rest) {
        Some(l) => Command::Exec(l),
        None if rest.is_empty() => Command::Exec(Vec::new()),
        None => Command::Shell(rest.into()),
    })
}

fn json_list(rest: &str) -> Option<Vec<String>> {
    if rest.starts_with('[') {
        serde_json::from_str(rest).ok()
    } else {
        None
    }
}

fn pairs(
    name: &str,
    rest: &str,
    escape: char,
) -> std::result::Result<Vec<(String, String)>, String> {
    let words = split_words(rest, escape)?;
    let Some(first) = words.first() else {
        return Err(format!("{name} needs an argument"));
    };
    if !first.contains('=') {
        // The old form: the name, then all the rest as the value.
        let (k, v) = match rest.find(char::is_whitespace) {
            Some(i) => (&rest[..i], rest[i..].trim()),
            None => return Err(format!("{name} must have the form NAME=VALUE")),
        };
        return Ok(vec![(k.into(), v.into())]);
    }
    let mut out = Vec::new();
    for w in words {
        match w.split_once('=') {
            Some((k, v)) if !k.is_empty() => out.push((k.to_owned(), v.to_owned())),
            Some(_) => return Err(format!("{name} with an empty name: {w:?}")),
            None => return Err(format!("{name}: {w:?} must have the form NAME=VALUE")),
        }
    }
    Ok(out)
}

/// Split at white space outside of quotes. Quotes and escapes stay in the words: [`expand`] takes them out.
fn split_words(s: &str, escape: char) -> std::result::Result<Vec<String>, String> {
    let mut out = Vec::new();
    let mut cur = String::new();
    let mut quote = None;
    let mut chars = s.chars();
    while let Some(c) = chars.next() {
        match quote {
            None if c.is_whitespace() => {
                if !cur.is_empty() {
                    out.push(std::mem::take(&mut cur));
                }
                continue;
            }
            None if c == '"' || c == '\'' => quote = Some(c),
            Some(q) if c == q => quote = None,
            _ if c == escape && quote != Some('\'') => {
                cur.push(c);
                if let Some(n) = chars.next() {
                    cur.push(n);
                }
                continue;
            }
            _ => {}
        }
        cur.push(c);
    }
    if let Some(q) = quote {
        return Err(format!("a quote {q} is not closed"));
    }
    if !cur.is_empty() {
        out.push(cur);
    }
    Ok(out)
}

/// Take quotes and escapes out of a word and put variables in: `$v`, `${v}`, `${v:-default}`, `${v:+other}`, and both
/// without the colon. Nothing is expanded in single quotes.
pub fn expand(
    word: &str,
    escape: char,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> std::result::Result<String, String> {
    let chars: Vec<char> = word.chars().collect();
    let mut at = 0;
    expand_until(&chars, &mut at, escape, lookup, false, 0)
}

fn expand_until(
    c: &[char],
    at: &mut usize,
    escape: char,
    lookup: &dyn Fn(&str) -> Option<String>,
    in_braces: bool,
    depth: u32,
) -> std::result::Result<String, String> {
    if depth > 16 {
        return Err("variables are nested too deeply".into());
    }
    let mut out = String::new();
    let mut double = false;
    while let Some(&ch) = c.get(*at) {
        match ch {
            '}' if in_braces && !double => return Ok(out),
            '\'' if !double => {
                *at += 1;
                loop {
                    match c.get(*at) {
                        Some('\'') => break,
                        Some(x) => out.push(*x),
                        None => return Err("a quote ' is not closed".into()),
                    }
                    *at += 1;
                }
                *at += 1;
            }
            '"' => {
                double = !double;
                *at += 1;
            }
            x if x == escape => {
                match c.get(*at + 1) {
                    // In double quotes the escape is only one before these; else it stays.
                    Some(n) if !double || matches!(n, '"' | '$') || *n == escape => out.push(*n),
                    Some(n) => {
                        out.push(x);
                        out.push(*n);
                    }
                    None => out.push(x),
                }
                *at += 2;
            }
            '$' => {
                *at += 1;
                out.push_str(&variable(c, at, escape, lookup, depth)?);
            }
            x => {
                out.push(x);
                *at += 1;
            }
        }
    }
    if in_braces {
        return Err("a variable's brace is not closed".into());
    }
    if double {
        Err("a quote \" is not closed".into())
    } else {
        Ok(out)
    }
}

fn variable(
    c: &[char],
    at: &mut usize,
    escape: char,
    lookup: &dyn Fn(&str) -> Option<String>,
    depth: u32,
) -> std::result::Result<String, String> {
    let name_at = |at: &mut usize| {
        let start = *at;
        while c
            .get(*at)
            .is_some_and(|x| x.is_ascii_alphanumeric() || *x == '_')
        {
            *at += 1;
        }
        c[start..*at].iter().collect::<String>()
    };
    if c.get(*at) != Some(&'{') {
        let name = name_at(at);
        return Ok(if name.is_empty() {
            "$".into()
        } else {
            lookup(&name).unwrap_or_default()
        });
    }
    *at += 1;
    let name = name_at(at);
    if name.is_empty() {
        return Err("a variable without a name in ${}".into());
    }
    let value = lookup(&name);
    let colon = c.get(*at) == Some(&':');
    if colon {
        *at += 1;
    }
    // With a colon an empty value counts as unset.
    let set = value.as_ref().is_some_and(|v| !colon || !v.is_empty());
    match c.get(*at).copied() {
        Some('}') if !colon => {
            *at += 1;
            Ok(value.unwrap_or_default())
        }
        Some(op @ ('-' | '+' | '?')) => {
            *at += 1;
            let word = expand_until(c, at, escape, lookup, true, depth + 1)?;
            *at += 1;
            match op {
                '-' if set => Ok(value.unwrap_or_default()),
                '+' if !set => Ok(String::new()),
                '?' if set => Ok(value.unwrap_or_default()),
                '?' => Err(format!(
                    "{name}: {}",
                    if word.is_empty() { "not set" } else { &word }
                )),
                _ => Ok(word),
            }
        }
        Some(x) => Err(format!(
            "unsupported modifier {x:?} in a substitution of ${{{name}}}"
        )),
        None => Err("a variable's brace is not closed".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Dockerfile {
        Dockerfile::parse(text, "Dockerfile").unwrap()
    }

    fn error(text: &str) -> String {
        Dockerfile::parse(text, "some/Dockerfile")
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn lines_are_joined_and_comments_left_out() {
        let d = parse(
            "# syntax=docker/dockerfile:1\n\nFROM scratch\nRUN a \\\n  # not here\n\n  b \\ \n c\nCMD [\"x\", \"y\"]\n",
        );
        let run = &d.lines[1];
        assert_eq!((run.number, run.text.as_str()), (4, "RUN a   b  c"));
        assert_eq!(
            d.lines[2].instruction,
            Instruction::Cmd(Command::Exec(vec!["x".into(), "y".into()]))
        );
        assert_eq!(d.lines[2].number, 9);
    }

    #[test]
    fn the_escape_directive_changes_the_escape() {
        let d = parse("# escape=`\nFROM scratch\nCOPY a `\n b c:\\\nUSER x\n");
        assert_eq!(d.lines.len(), 3);
        let Instruction::Copy { paths, .. } = &d.lines[1].instruction else {
            panic!()
        };
        assert_eq!(paths, &["a", "b", "c:\\"]);
    }

    #[test]
    fn every_instruction_has_its_shape() {
        let d = parse(
            "ARG V=1\nFROM --platform=linux/amd64 base:$V AS Build\nENV a=1 b=\"x y\" c=d\\ e\nENV old way of it\n\
             COPY --from=build --chown=1:2 [\"a b\", \"/c\"]\nADD --chmod=644 x.tar /\nLABEL q=\"a=b\"\nEXPOSE 80 443/tcp\n\
             VOLUME [\"/v\"]\nSHELL [\"/bin/bash\", \"-c\"]\nENTRYPOINT exec top\nSTOPSIGNAL SIGQUIT\nHEALTHCHECK NONE\nUSER u:g\nWORKDIR /w\nRUN --network=none [\"a\"]",
        );
        let i: Vec<&Instruction> = d.lines.iter().map(|l| &l.instruction).collect();
        assert_eq!(
            i[1],
            &Instruction::From {
                platform: Some("linux/amd64".into()),
                image: "base:$V".into(),
                name: Some("build".into())
            }
        );
        assert_eq!(
            i[2],
            &Instruction::Env(vec![
                ("a".into(), "1".into()),
                ("b".into(), "\"x y\"".into()),
                ("c".into(), "d\\ e".into())
            ])
        );
        assert_eq!(
            i[3],
            &Instruction::Env(vec![("old".into(), "way of it".into())])
        );
        let Instruction::Copy {
            add: false,
            flags,
            paths,
        } = i[4]
        else {
            panic!()
        };
        assert_eq!(
            (flags["from"].as_str(), flags["chown"].as_str()),
            ("build", "1:2")
        );
        assert_eq!(paths, &["a b", "/c"]);
        assert_eq!(
            i[6],
            &Instruction::Label(vec![("q".into(), "\"a=b\"".into())])
        );
        assert_eq!(
            i[10],
            &Instruction::Entrypoint(Command::Shell("exec top".into()))
        );
        assert!(matches!(i[12], Instruction::Healthcheck(h) if h.test == ["NONE"]));
    }

    #[test]
    fn errors_have_file_and_line() {
        for (text, want) in [
            (
                "FROM scratch\nFRM x",
                "some/Dockerfile:2: unknown instruction \"FRM\"",
            ),
            ("", "some/Dockerfile:1: it has no FROM"),
            ("RUN x", "some/Dockerfile:1: RUN before the first FROM"),
            ("FROM scratch\n\nCOPY a", "some/Dockerfile:3: COPY needs"),
            ("FROM a b", "some/Dockerfile:1: FROM takes"),
            (
                "FROM scratch\nENV a=\"x",
                "some/Dockerfile:2: a quote \" is not closed",
            ),
            (
                "FROM scratch\nRUN --mount=type=cache x",
                "some/Dockerfile:2: RUN --mount",
            ),
            (
                "FROM scratch\nRUN <<EOF\nx\nEOF",
                "some/Dockerfile:2: RUN with a here-document",
            ),
            (
                "FROM scratch\nCOPY --parents a b",
                "some/Dockerfile:2: COPY --parents",
            ),
            (
                "# escape=x\nFROM scratch",
                "some/Dockerfile:1: invalid escape",
            ),
            ("FROM scratch\nENV a", "some/Dockerfile:2: ENV must"),
        ] {
            let e = error(text);
            assert!(e.starts_with(want), "{e}");
        }
    }

    #[test]
    fn variables_are_expanded_as_in_a_shell() {
        let vars = |n: &str| match n {
            "a" => Some("1".to_owned()),
            "e" => Some(String::new()),
            _ => None,
        };
        for (word, want) in [
            ("$a", "1"),
            ("x${a}y", "x1y"),
            ("${no:-d$a}", "d1"),
            ("${e:-d}", "d"),
            ("${e-d}", ""),
            ("${a:+yes}", "yes"),
            ("${no+yes}", ""),
            ("'$a'", "$a"),
            ("\"$a b\"", "1 b"),
            ("\\$a", "$a"),
            ("\"\\n\\\"\"", "\\n\""),
            ("a\\ b", "a b"),
            ("$", "$"),
            ("$a$a", "11"),
            ("${no}", ""),
        ] {
            assert_eq!(expand(word, '\\', &vars).unwrap(), want, "{word}");
        }
        for bad in ["${", "${a", "${a%x}", "'x", "${}", "${no:?must be given}"] {
            assert!(expand(bad, '\\', &vars).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_or_has_an_error_with_a_line(s in "(FROM|RUN|COPY|ENV|#|\\\\|\n| |a|=|\"|'|\\$|\\{|\\}|\\[|\\]|:|-){0,60}") {
            match Dockerfile::parse(&s, "f") {
                Ok(d) => for l in d.lines { prop_assert!(l.number >= 1); },
                Err(e) => prop_assert!(e.to_string().starts_with("f:")),
            }
            let _ = expand(&s, '\\', &|_| Some("v".into()));
        }
    }
}
