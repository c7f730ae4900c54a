//! Content negotiation: which form of an object the client asked for, and which form a body is in. Pure.
//!
//! Follows k8s.io/apiserver/pkg/endpoints/handlers/negotiation: clauses are tried in the order of their q value; a clause
//! that cannot be served is passed over; when none is left the answer is 406.

use ::http::HeaderMap;
use skiff_api::status::Status;

/// How the bytes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// `application/json`
    Json,
    /// `application/json` with indentation (`?pretty=1`, or a browser or curl asking).
    PrettyJson,
    /// `application/yaml`
    Yaml,
}

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// The object itself.
    Object,
    /// `meta.k8s.io/v1` Table (`v1beta1` when true).
    Table { v1beta1: bool },
    /// PartialObjectMetadata or its List (`v1beta1` when true).
    Partial { v1beta1: bool },
}

/// An answer's representation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Accept {
    /// JSON or YAML.
    pub encoding: Encoding,
    /// The object, a Table or its metadata.
    pub form: Form,
}

impl Accept {
    /// Plain JSON.
    pub const JSON: Self = Self {
        encoding: Encoding::Json,
        form: Form::Object,
    };

    /// The Content-Type of an answer in this representation.
    pub fn content_type(self) -> &'static str {
        match self.encoding {
            Encoding::Json | Encoding::PrettyJson => "application/json",
            Encoding::Yaml => "application/yaml",
        }
    }
}

/// One clause of an Accept header.
struct Clause<'a> {
    media: &'a str,
    params: Vec<(&'a str, &'a str)>,
    q: f32,
}

fn clauses(header: &str) -> Vec<Clause<'_>> {
    let mut list: Vec<Clause<'_>> = header
        .split(',')
        .filter_map(|c| {
            let mut parts = c.split(';').map(str::trim);
            let media = parts.next().filter(|m| !m.is_empty())?;
            let mut q = 1.0;
            let mut params = Vec::new();
            for p in parts {
                let (k, v) = p.split_once('=').unwrap_or((p, ""));
                let v = v.trim_matches('"');
                if k == "q" {
                    q = v.parse().unwrap_or(0.0)
                } else {
                    params.push((k, v))
                }
            }
            Some(Clause { media, params, q })
        })
        .collect();
    // A stable sort keeps the client's order among equals.
    list.sort_by(|a, b| b.q.total_cmp(&a.q));
    list
}

const SUPPORTED: &str = "application/json, application/yaml";

/// Chooses the representation of the answer. `convertible` allows Table and PartialObjectMetadata (reads and writes of
/// objects); discovery and such allow none.
///
/// # Errors
/// 406 when no clause can be served (protobuf alone, for one).
pub fn accept(
    headers: &HeaderMap,
    query_pretty: Option<bool>,
    convertible: bool,
) -> Result<Accept, Status> {
    let header = headers
        .get(http::header::ACCEPT)
        .and_then(|v| v.to_str().ok())
        .unwrap_or("")
        .trim();
    if header.is_empty() || header == "application/json" {
        let encoding = if query_pretty == Some(true) {
            Encoding::PrettyJson
        } else {
            Encoding::Json
        };
        return Ok(Accept {
            encoding,
            form: Form::Object,
        });
    }
    for c in clauses(header) {
        let mut encoding = match c.media {
            "application/json" | "*/*" | "application/*" => Encoding::Json,
            "application/yaml" => Encoding::Yaml,
            _ => continue,
        };
        let get = |k: &str| c.params.iter().find(|(p, _)| *p == k).map(|(_, v)| *v);
        let form = match get("as") {
            None => Form::Object,
            Some(kind) => {
                let v1beta1 = match get("v") {
                    Some("v1") => false,
                    Some("v1beta1") => true,
                    _ => continue,
                };
                if get("g") != Some("meta.k8s.io") || !convertible {
                    continue;
                }
                match kind {
                    "Table" => Form::Table { v1beta1 },
                    "PartialObjectMetadata" | "PartialObjectMetadataList" => {
                        Form::Partial { v1beta1 }
                    }
                    _ => continue,
                }
            }
        };
        if encoding == Encoding::Json {
            let pretty = query_pretty
                .or_else(|| get("pretty").map(crate::http::path::truthy))
                .unwrap_or_else(|| from_a_person(headers));
            if pretty {
                encoding = Encoding::PrettyJson;
            }
        }
        return Ok(Accept { encoding, form });
    }
    Err(not_acceptable())
}

/// Curl and browsers get indented JSON unless they say `pretty=0`, as upstream.
fn from_a_person(headers: &HeaderMap) -> bool {
    headers
        .get(http::header::USER_AGENT)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|ua| {
            ua.starts_with("curl") || ua.starts_with("Wget") || ua.starts_with("Mozilla/5.0")
        })
}

/// 406.
pub fn not_acceptable() -> Status {
    Status::new(
        406,
        "NotAcceptable",
        format!("only the following media types are accepted: {SUPPORTED}"),
    )
}

/// The media type of a Content-Type header, without parameters.
pub fn media_type(headers: &HeaderMap) -> &str {
    headers
        .get(http::header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .map(|v| v.split(';').next().unwrap_or("").trim())
        .unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(accept_header: &str, ua: &str) -> String {
        let mut h = HeaderMap::new();
        if let Ok(v) = accept_header.parse() {
            h.insert("accept", v);
        }
        if let Ok(v) = ua.parse() {
            h.insert("user-agent", v);
        }
        match accept(&h, None, true) {
            Ok(a) => format!("{:?} {:?}", a.encoding, a.form),
            Err(e) => format!("{}", e.code),
        }
    }

    #[test]
    fn the_first_clause_that_can_be_served_wins() {
        for (header, want) in [
            ("", "Json Object"),
            ("*/*", "Json Object"),
            ("application/vnd.kubernetes.protobuf", "406"),
            (
                "application/vnd.kubernetes.protobuf,application/json",
                "Json Object",
            ),
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
                "Json Table { v1beta1: false }",
            ),
            (
                "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json",
                "Json Partial { v1beta1: false }",
            ),
            ("application/json;as=Table;v=v9;g=meta.k8s.io", "406"),
            ("application/yaml", "Yaml Object"),
            (
                "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
                "Json Object",
            ),
            ("application/json;q=0.1,application/yaml", "Yaml Object"),
        ] {
            assert_eq!(ask(header, "kubectl"), want, "{header}");
        }
        assert_eq!(ask("*/*", "curl/8.0"), "PrettyJson Object");
    }
}
