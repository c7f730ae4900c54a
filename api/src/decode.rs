//! Bytes to an object: JSON and YAML, driven by the schema facts. Owns what Go's decoder does with types, unknown and
//! duplicate fields, nulls and quantities; does no defaulting and no validation. Never panics, whatever comes in.
//!
//! One pass: a serde seed walks the input beside the schema, so that duplicates are seen and what is unknown is never
//! built. Texts follow sigs.k8s.io/json and the API server's `transformDecodeError`.

use crate::quantity::Quantity;
use crate::resource::Resource;
use crate::schema::{self, Type, TypeDef};
use crate::status::Status;
use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::cell::RefCell;
use std::fmt;

/// Upstream reports at most this many strict errors of an object.
const MAX_STRICT_ERRORS: usize = 100;

/// How long the text of a strict error may be.
const MAX_STRICT_TEXT: usize = 1024;

/// How deep values may lie in each other. What is stored must be readable by everybody: serde_json's readers stop at 128, and
/// lists, watch events and managedFields add a few levels.
pub const MAX_DEPTH: usize = 100;

/// How many items a list inside an object may have. Upstream knows no such limit but etcd's of bytes; what looks at each item
/// beside each other item takes seconds beyond it.
pub const MAX_ITEMS: usize = 10_000;

/// How many bytes of keys and scalars a YAML document may come to once its aliases are followed: no more than a request may
/// have without any.
const MAX_YAML_TEXT: usize = 3 * 1024 * 1024;

/// The one struct with a time that is neither a pointer nor optional.
const CONDITION: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Condition";
const TRANSITION: &str = "lastTransitionTime";
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// What unknown and duplicate fields do (`fieldValidation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strictness {
    /// They are dropped silently.
    Ignore,
    /// They are dropped, with a warning each.
    #[default]
    Warn,
    /// They are a 400.
    Strict,
}

impl Strictness {
    /// Of the query parameter `fieldValidation`; none when it is no such word.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "Ignore" => Some(Self::Ignore),
            "" | "Warn" => Some(Self::Warn),
            "Strict" => Some(Self::Strict),
            _ => None,
        }
    }
}

/// What the caller expects the bytes to be.
#[derive(Debug, Clone, Copy)]
pub struct Expect<'a> {
    /// Group, empty for core.
    pub group: &'a str,
    /// Version.
    pub version: &'a str,
    /// Kind.
    pub kind: &'a str,
    /// Its definition; none for kinds made at run time, whose own schema prunes them (their metadata is checked here).
    pub schema: Option<&'static TypeDef>,
    /// Other versions of the kind that are taken too, because they are read the same.
    pub also: Also,
}

/// Which other group versions a body may be in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Also {
    /// None.
    #[default]
    None,
    /// This one.
    Version(&'static str, &'static str),
    /// Every one in which the kind is known (DeleteOptions, which each group has).
    Any,
}

impl<'a> Expect<'a> {
    /// What a row's objects are.
    pub fn row(row: &'a Resource) -> Self {
        Self {
            group: &row.group,
            version: &row.version,
            kind: &row.kind,
            schema: schema::find(&row.schema),
            also: Also::None,
        }
    }
    /// A kind by group, version and kind (bodies of subresources, DeleteOptions).
    pub fn gvk(group: &'a str, version: &'a str, kind: &'a str) -> Self {
        Self {
            group,
            version,
            kind,
            schema: schema::by_gvk(group, version, kind),
            also: Also::None,
        }
    }
    /// The same, in other versions too.
    pub fn also(self, also: Also) -> Self {
        Self { also, ..self }
    }
    fn accepts(&self, group: &str, version: &str) -> bool {
        match self.also {
            Also::None => false,
            Also::Version(g, v) => (g, v) == (group, version),
            Also::Any => schema::by_gvk(group, version, self.kind).is_some(),
        }
    }
    fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_string()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

/// The forms a body may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// `application/json`, also when nothing is said.
    Json,
    /// `application/yaml`.
    Yaml,
}

impl Encoding {
    /// Of a Content-Type header's value; 415 for others.
    pub fn of(content_type: &str) -> Result<Self, Status> {
        let media = content_type
            .split(';')
            .next()
            .unwrap_or("")
            .trim()
            .to_ascii_lowercase();
        match media.as_str() {
            "" | "application/json" | "text/json" | "*/*" => Ok(Self::Json),
            "application/yaml" | "text/yaml" | "application/x-yaml" => Ok(Self::Yaml),
            _ => Err(Status::unsupported_media_type(
                "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml",
            )),
        }
    }
}

/// Decodes a request body. `content_type` is the header's value (parameters are allowed): JSON or YAML; else 415.
/// Missing apiVersion and kind are filled in as expected; others are a 400. Gives the object, with unknown fields
/// dropped, and warnings for the `Warning:` header.
pub fn decode(
    bytes: &[u8],
    content_type: &str,
    expect: &Expect<'_>,
    strictness: Strictness,
) -> Result<(Value, Vec<String>), Status> {
    read(bytes, content_type, expect, strictness, false)
}

/// The same for the configuration of a server-side apply, which is a part of an object: nothing is filled in that its manager
/// did not say.
pub fn decode_applied(
    bytes: &[u8],
    expect: &Expect<'_>,
    strictness: Strictness,
) -> Result<(Value, Vec<String>), Status> {
    read(bytes, "application/yaml", expect, strictness, true)
}

fn read(
    bytes: &[u8],
    content_type: &str,
    expect: &Expect<'_>,
    strictness: Strictness,
    part: bool,
) -> Result<(Value, Vec<String>), Status> {
    let context = || Context {
        part,
        ..Context::new(expect.schema.is_none())
    };
    let parsed = match Encoding::of(content_type)? {
        Encoding::Json => {
            json(bytes, expect, context()).map_err(|e| format!("json parse error: {e}"))
        }
        Encoding::Yaml => {
            // Mostly it is JSON (server-side apply), which is YAML too and read much faster. JSON that is refused is told of
            // as the YAML reader does.
            let whole_floats = true;
            let quick = bytes.trim_ascii_start().starts_with(b"{").then(|| {
                let ctx = Context {
                    whole_floats,
                    ..context()
                };
                json(bytes, expect, ctx).ok()
            });
            match quick.flatten() {
                Some(read) => Ok(read),
                None => std::str::from_utf8(bytes)
                    .map_err(|e| e.to_string())
                    .and_then(|text| yaml(text, SeedType::root(expect), context()))
                    .map_err(|e| format!("yaml parse error: {e}")),
            }
        }
    };
    match parsed {
        Ok((v, ctx)) => finish(v, ctx, expect, strictness, bytes),
        Err(e) => Err(unrecognized(
            expect,
            &format!("couldn't get version/kind; {e}"),
            bytes,
        )),
    }
}

fn json(
    bytes: &[u8],
    expect: &Expect<'_>,
    ctx: Context,
) -> Result<(Option<Value>, Context), serde_json::Error> {
    let ctx = RefCell::new(ctx);
    let mut de = serde_json::Deserializer::from_slice(bytes);
    let seed = Seed {
        ty: SeedType::root(expect),
        ctx: &ctx,
    };
    let v = seed.deserialize(&mut de)?;
    de.end()?;
    Ok((v, ctx.into_inner()))
}

/// The same for an object that is there already (after a patch): types are checked, unknown fields dropped.
pub fn convert(
    object: Value,
    expect: &Expect<'_>,
    strictness: Strictness,
) -> Result<(Value, Vec<String>), Status> {
    let ctx = RefCell::new(Context::new(false));
    let seed = Seed {
        ty: SeedType::root(expect),
        ctx: &ctx,
    };
    match seed.deserialize(object) {
        Ok(v) => finish(v, ctx.into_inner(), expect, strictness, b"{}"),
        Err(e) => Err(Status::bad_request(e.to_string())),
    }
}

/// Parses JSON without a schema (patches), within the bounds of depth and items; the last of duplicates counts.
pub fn json_to_value(bytes: &[u8]) -> Result<Value, String> {
    let ctx = RefCell::new(Context::new(false));
    let seed = Seed {
        ty: SeedType::Typed(&Type::Any),
        ctx: &ctx,
    };
    let mut de = serde_json::Deserializer::from_slice(bytes);
    let v = seed.deserialize(&mut de).map_err(|e| e.to_string())?;
    de.end().map_err(|e| e.to_string())?;
    Ok(v.unwrap_or(Value::Null))
}

/// Parses YAML or JSON without a schema (patches, configuration files): mapping keys become strings, duplicates are an
/// error.
pub fn yaml_to_value(text: &str) -> Result<Value, String> {
    let ty = SeedType::Typed(&Type::Any);
    let (v, ctx) = yaml(text, ty, Context::new(true))?;
    match ctx.strict.first() {
        Some(e) => Err(e.clone()),
        None => Ok(v.unwrap_or(Value::Null)),
    }
}

/// Parses a file of YAML documents (JSON too) without a schema; empty documents are left out.
pub fn yaml_documents(text: &str) -> Result<Vec<Value>, String> {
    on_a_large_stack(|| {
        let documents: Vec<Document> =
            serde_saphyr::from_multiple_with_options(text, yaml_options())
                .map_err(|e| e.to_string())?;
        Ok(documents.into_iter().map(|d| d.0).collect())
    })
}

/// A YAML document as free JSON; duplicate keys are an error.
struct Document(Value);

impl<'de> serde::Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        let ctx = RefCell::new(Context {
            whole_floats: true,
            text_left: Some(MAX_YAML_TEXT),
            ..Context::new(true)
        });
        let seed = Seed {
            ty: SeedType::Typed(&Type::Any),
            ctx: &ctx,
        };
        let v = seed.deserialize(de)?;
        match ctx.into_inner().strict.first() {
            Some(e) => Err(serde::de::Error::custom(e)),
            None => Ok(Self(v.unwrap_or(Value::Null))),
        }
    }
}

/// Reads one YAML document on a stack of its own: its reader takes some tens of KiB for each level, more than a server's
/// threads have for as many levels as JSON may have.
fn yaml(text: &str, ty: SeedType, ctx: Context) -> Result<(Option<Value>, Context), String> {
    on_a_large_stack(|| {
        let ctx = RefCell::new(Context {
            whole_floats: true,
            text_left: Some(MAX_YAML_TEXT.max(text.len())),
            ..ctx
        });
        let seed = Seed { ty, ctx: &ctx };
        let v = serde_saphyr::with_deserializer_from_str_with_options(text, yaml_options(), |de| {
            seed.deserialize(de)
        })
        .map_err(|e| e.to_string())?;
        Ok((v, ctx.into_inner()))
    })
}

fn on_a_large_stack<T: Send>(read: impl FnOnce() -> Result<T, String> + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .stack_size(8 << 20)
            .spawn_scoped(scope, read)
            .map_err(|e| format!("no thread to read it: {e}"))?
            .join()
            .unwrap_or_else(|_| Err("it cannot be read".into()))
    })
}

/// YAML as sigs.k8s.io/yaml reads it: 0644 is octal, yes and on are booleans; duplicates are counted by the seed.
fn yaml_options() -> serde_saphyr::Options {
    let mut options = serde_saphyr::Options::default();
    options.duplicate_keys = serde_saphyr::DuplicateKeyPolicy::PassThrough;
    options.legacy_octal_numbers = true;
    options.with_snippet = false;
    options.alias_limits.max_total_replayed_events = 100_000;
    if let Some(b) = options.budget.as_mut() {
        b.max_depth = MAX_DEPTH + 1;
        b.max_recorded_anchor_events = 200_000;
        b.max_recorded_anchor_bytes = 8 << 20;
    }
    options
}

/// A body that is no object of any kind.
fn unrecognized(expect: &Expect<'_>, why: &str, body: &[u8]) -> Status {
    Status::bad_request(format!(
        "the object provided is unrecognized (must be of type {}): {why} ({})",
        expect.kind,
        summary(body)
    ))
}

/// The first bytes of a body, as upstream's `summarizeData`: text when it looks like JSON, else hex.
fn summary(body: &[u8]) -> String {
    const MAX: usize = 30;
    let head = &body[..body.len().min(MAX)];
    let shown = match body.first() {
        None => return "<empty>".to_string(),
        Some(b'{') => String::from_utf8_lossy(head).into_owned(),
        Some(_) => head.iter().map(|b| format!("{b:02x}")).collect(),
    };
    if body.len() > MAX {
        format!("{shown} ...")
    } else {
        shown
    }
}

fn finish(
    parsed: Option<Value>,
    ctx: Context,
    expect: &Expect<'_>,
    strictness: Strictness,
    body: &[u8],
) -> Result<(Value, Vec<String>), Status> {
    let Some(Value::Object(mut object)) = parsed else {
        let what = ctx.mismatch.map_or_else(
            || "json: cannot unmarshal null into an object".to_string(),
            |m| format!("json: cannot unmarshal {} into Go value of type struct {{ APIVersion string; Kind string }}", m.found),
        );
        return Err(unrecognized(
            expect,
            &format!("couldn't get version/kind; json parse error: {what}"),
            body,
        ));
    };
    check_kind(&mut object, expect, body)?;
    let cannot = |why: &str| {
        Status::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: {why}",
            expect.kind, expect.version, expect.kind
        ))
    };
    if let Some(e) = ctx.fatal.or(ctx.mismatch.map(|m| m.text)) {
        return Err(cannot(&e));
    }
    let object = Value::Object(object);
    match strictness {
        Strictness::Ignore => Ok((object, Vec::new())),
        Strictness::Strict if !ctx.strict.is_empty() => Err(cannot(&format!(
            "strict decoding error: {}",
            ctx.strict.join(", ")
        ))),
        Strictness::Warn | Strictness::Strict => Ok((object, ctx.strict)),
    }
}

/// Fills in apiVersion and kind, or says how they are wrong; they come first in the object.
fn check_kind(
    object: &mut Map<String, Value>,
    expect: &Expect<'_>,
    body: &[u8],
) -> Result<(), Status> {
    let text = |k: &str| {
        object
            .get(k)
            .and_then(Value::as_str)
            .unwrap_or("")
            .to_string()
    };
    let (mut api_version, mut kind) = (text("apiVersion"), text("kind"));
    if api_version.matches('/').count() > 1 {
        return Err(unrecognized(
            expect,
            &format!(
                "couldn't get version/kind; json parse error: unexpected GroupVersion string: {api_version}"
            ),
            body,
        ));
    }
    if kind.is_empty() {
        kind = expect.kind.to_string();
    }
    if api_version.is_empty() {
        api_version = expect.api_version();
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    if kind == expect.kind && expect.accepts(group, version) {
        api_version = expect.api_version();
    } else if kind != expect.kind || group != expect.group || version != expect.version {
        let known = schema::by_gvk(group, version, &kind).is_some();
        let message = if !known {
            format!(
                "{kind} in version {version:?} cannot be handled as a {}: no kind {kind:?} is registered for version {api_version:?} in scheme \"k8s.io/kubernetes/pkg/api/legacyscheme/scheme.go:30\"",
                expect.kind
            )
        } else if kind == expect.kind {
            format!(
                "the API version in the data ({api_version}) does not match the expected API version ({})",
                expect.api_version()
            )
        } else {
            let package = match expect.group.split('.').next() {
                Some("") | None => "core",
                Some(p) => p,
            };
            format!(
                "{kind} in version {version:?} cannot be handled as a {}: converting ({version}.{kind}) to ({package}.{}): unknown conversion",
                expect.kind, expect.kind
            )
        };
        return Err(Status::bad_request(message));
    }
    let rest = std::mem::take(object);
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), kind.into());
    object.extend(
        rest.into_iter()
            .filter(|(k, _)| k != "apiVersion" && k != "kind"),
    );
    Ok(())
}

/// One part of the path that is being read.
enum Segment {
    Field(&'static str),
    Index(usize),
    Key(String),
}

/// A value of the wrong type.
struct Mismatch {
    found: String,
    text: String,
}

struct Context {
    path: Vec<Segment>,
    /// Go names of the structs that are being read, innermost last.
    structs: Vec<&'static str>,
    /// Errors that end Go's decoding at once (unmarshallers' own); they win over a mismatch before them.
    fatal: Option<String>,
    /// The first value of a wrong type.
    mismatch: Option<Mismatch>,
    /// Unknown and duplicate fields, as upstream words them.
    strict: Vec<String>,
    /// Report duplicates inside free JSON.
    free_duplicates: bool,
    /// Whole floats are integers: YAML becomes JSON first upstream, and there 8.0 is written 8.
    whole_floats: bool,
    /// It is a part of an object.
    part: bool,
    /// Bytes of keys and scalars that may still come; None where the input bounds them itself (JSON has no aliases).
    text_left: Option<usize>,
}

impl Context {
    fn new(free_duplicates: bool) -> Self {
        Self {
            path: Vec::new(),
            structs: Vec::new(),
            fatal: None,
            mismatch: None,
            strict: Vec::new(),
            free_duplicates,
            whole_floats: false,
            part: false,
            text_left: None,
        }
    }

    /// Counts bytes of a key or scalar.
    fn charge<E: serde::de::Error>(&mut self, bytes: usize) -> Result<(), E> {
        if let Some(left) = &mut self.text_left {
            *left = left
                .checked_sub(bytes + 1)
                .ok_or_else(|| E::custom("document contains excessive aliasing"))?;
        }
        Ok(())
    }

    /// Goes one level down.
    fn enter<E: serde::de::Error>(&mut self, segment: Segment) -> Result<(), E> {
        if self.path.len() >= MAX_DEPTH {
            return Err(E::custom("exceeded max depth"));
        }
        self.path.push(segment);
        Ok(())
    }

    /// The path with indices, as strict errors show it, with a last part.
    fn full_path(&self, last: &str) -> String {
        let mut s = String::new();
        for seg in &self.path {
            match seg {
                Segment::Index(i) => s.push_str(&format!("[{i}]")),
                Segment::Field(_) | Segment::Key(_) => {
                    if !s.is_empty() {
                        s.push('.');
                    }
                    match seg {
                        Segment::Field(f) => s.push_str(f),
                        Segment::Key(k) => s.push_str(k),
                        Segment::Index(_) => {}
                    }
                }
            }
        }
        if !s.is_empty() {
            s.push('.');
        }
        s.push_str(last);
        s
    }

    fn strict(&mut self, what: &str, last: &str) {
        if self.strict.len() < MAX_STRICT_ERRORS {
            let mut text = format!("{what} field {:?}", self.full_path(last));
            if text.len() > MAX_STRICT_TEXT {
                // A long key on the way would be repeated by each error below it.
                text = text.chars().take(MAX_STRICT_TEXT).collect();
            }
            if !self.strict.contains(&text) {
                self.strict.push(text);
            }
        }
    }

    /// Records a value of a wrong type; Go shows the innermost struct, the path of fields, and the Go type.
    fn mismatch(&mut self, found: String, go_type: &str) {
        if self.mismatch.is_some() {
            return;
        }
        let fields: Vec<&str> = self
            .path
            .iter()
            .filter_map(|s| match s {
                Segment::Field(f) => Some(*f),
                _ => None,
            })
            .collect();
        let target = match self.structs.last() {
            Some(name) if !fields.is_empty() => {
                format!("Go struct field {name}.{}", fields.join("."))
            }
            _ => "Go value".to_string(),
        };
        self.mismatch = Some(Mismatch {
            text: format!("json: cannot unmarshal {found} into {target} of type {go_type}"),
            found,
        });
    }

    fn fatal(&mut self, text: String) {
        if self.fatal.is_none() {
            self.fatal = Some(text);
        }
    }
}

/// How Go writes a type.
fn go_type(ty: &Type) -> String {
    match ty {
        Type::String => "string".into(),
        Type::Int32 => "int32".into(),
        Type::Int64 => "int64".into(),
        Type::Bool => "bool".into(),
        Type::Double => "float64".into(),
        Type::Quantity => "resource.Quantity".into(),
        Type::Time => "v1.Time".into(),
        Type::MicroTime => "v1.MicroTime".into(),
        Type::IntOrString => "intstr.IntOrString".into(),
        Type::Bytes => "[]uint8".into(),
        Type::Any | Type::Object => "runtime.RawExtension".into(),
        Type::Map(t) => format!("map[string]{}", go_type(t)),
        Type::List(t) => format!("[]{}", go_type(t)),
        Type::Ref(id) => id.get().go_name().into(),
    }
}

#[derive(Clone, Copy)]
enum SeedType {
    Typed(&'static Type),
    Struct(&'static TypeDef),
    /// An object of a kind made at run time: typed metadata, the rest free.
    Custom,
}

/// Reads one value of a type. The result is none for null (and for what Go's encoder would leave out).
#[derive(Clone, Copy)]
struct Seed<'a> {
    ty: SeedType,
    ctx: &'a RefCell<Context>,
}

impl SeedType {
    fn root(expect: &Expect<'_>) -> Self {
        expect.schema.map_or(Self::Custom, Self::Struct)
    }
}

impl Seed<'_> {
    fn of(&self, ty: &'static Type) -> Self {
        let ty = match ty {
            Type::Ref(id) => SeedType::Struct(id.get()),
            other => SeedType::Typed(other),
        };
        Seed { ty, ctx: self.ctx }
    }
    fn go_type(&self) -> String {
        match self.ty {
            SeedType::Typed(t) => go_type(t),
            SeedType::Struct(d) => d.go_name().to_string(),
            SeedType::Custom => "map[string]interface {}".to_string(),
        }
    }
    fn wrong(&self, found: impl Into<String>) -> Option<Value> {
        // Types with unmarshallers of their own report what they read into.
        let go = match self.ty {
            SeedType::Typed(Type::Time | Type::MicroTime) => "string".to_string(),
            SeedType::Typed(Type::IntOrString) => "int32".to_string(),
            _ => self.go_type(),
        };
        self.ctx.borrow_mut().mismatch(found.into(), &go);
        None
    }
    fn fatal(&self, text: impl Into<String>) -> Option<Value> {
        self.ctx.borrow_mut().fatal(text.into());
        None
    }
    fn integer(&self, n: i128, lo: i128, hi: i128) -> Option<Value> {
        if n < lo || n > hi {
            return self.wrong(format!("number {n}"));
        }
        i64::try_from(n).ok().map(Value::from)
    }
    fn number(&self, n: i128) -> Option<Value> {
        match self.ty {
            SeedType::Typed(t) => match t {
                Type::Int32 | Type::IntOrString => {
                    self.integer(n, i32::MIN.into(), i32::MAX.into())
                }
                Type::Int64 => self.integer(n, i64::MIN.into(), i64::MAX.into()),
                Type::Double => Some(plain_number(n)),
                Type::Quantity => self.quantity(&n.to_string()),
                Type::Any => Some(plain_number(n)),
                _ => self.wrong("number"),
            },
            _ => self.wrong("number"),
        }
    }
    fn quantity(&self, text: &str) -> Option<Value> {
        match Quantity::parse(text.trim()) {
            Ok(q) => Some(q.to_string().into()),
            Err(e) => self.fatal(e.to_string()),
        }
    }
}

fn plain_number(n: i128) -> Value {
    match i64::try_from(n) {
        Ok(n) => n.into(),
        Err(_) => Number::from_f64(n as f64).map_or(Value::Null, Value::Number),
    }
}

/// Standard base64 as Go reads it: line breaks are skipped, padding is required.
fn base64(text: &str) -> Result<Vec<u8>, String> {
    const ENGINE: GeneralPurpose = GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::RequireCanonical)
            .with_decode_allow_trailing_bits(true),
    );
    let clean: std::borrow::Cow<'_, str> = if text.contains(['\r', '\n']) {
        text.replace(['\r', '\n'], "").into()
    } else {
        text.into()
    };
    ENGINE.decode(clean.as_bytes()).map_err(|e| {
        let at = match e {
            base64::DecodeError::InvalidByte(i, _)
            | base64::DecodeError::InvalidLastSymbol(i, _) => i,
            base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => {
                clean.len()
            }
        };
        format!("illegal base64 data at input byte {at}")
    })
}

/// Go's zero value, for nulls in lists and maps.
fn zero(ty: &'static Type) -> Value {
    match ty {
        Type::String => "".into(),
        Type::Int32 | Type::Int64 | Type::IntOrString => 0.into(),
        Type::Double => 0.into(),
        Type::Bool => false.into(),
        Type::Quantity => "0".into(),
        Type::Bytes => "".into(),
        Type::List(_) => Value::Array(Vec::new()),
        Type::Ref(id) if id.get().name == CONDITION => {
            Value::Object(Map::from_iter([(TRANSITION.to_string(), ZERO_TIME.into())]))
        }
        Type::Ref(_) | Type::Map(_) | Type::Object => Value::Object(Map::new()),
        Type::Time | Type::MicroTime | Type::Any => Value::Null,
    }
}

/// What Go's encoder leaves out of a field that the schema does not require: empty lists and maps (protobuf could not
/// store them either), and in metadata, whose fields are no pointers, empty strings and zeros.
fn omitted(def: &TypeDef, field: &schema::Field, v: &Value) -> bool {
    match (v, &field.ty) {
        (Value::Array(a), Type::List(_)) => a.is_empty() && !field.required,
        (Value::Object(o), Type::Map(_)) => o.is_empty() && !field.required,
        (Value::String(s), Type::String) if s.is_empty() => {
            std::ptr::eq(def, schema::object_meta()) && !field.required
        }
        (Value::Number(n), _) if field.name == "generation" => n.as_i64() == Some(0),
        _ => false,
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Option<Value>;
    fn deserialize<D: Deserializer<'de>>(self, de: D) -> Result<Self::Value, D::Error> {
        de.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(match self.ty {
            SeedType::Typed(Type::Any) => Some(Value::Null),
            _ => None,
        })
    }
    fn visit_none<E: serde::de::Error>(self) -> Result<Self::Value, E> {
        self.visit_unit()
    }
    fn visit_some<D: Deserializer<'de>>(self, de: D) -> Result<Self::Value, D::Error> {
        de.deserialize_any(self)
    }
    fn visit_newtype_struct<D: Deserializer<'de>>(self, de: D) -> Result<Self::Value, D::Error> {
        de.deserialize_any(self)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Self::Value, E> {
        Ok(match self.ty {
            SeedType::Typed(Type::Bool | Type::Any) => Some(v.into()),
            SeedType::Typed(Type::Quantity) => self.quantity(if v { "true" } else { "false" }),
            _ => self.wrong("bool"),
        })
    }

    fn visit_i64<E>(self, v: i64) -> Result<Self::Value, E> {
        Ok(self.number(v.into()))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Self::Value, E> {
        Ok(self.number(v.into()))
    }
    fn visit_i128<E>(self, v: i128) -> Result<Self::Value, E> {
        Ok(self.number(v))
    }
    fn visit_u128<E>(self, v: u128) -> Result<Self::Value, E> {
        Ok(self.number(i128::try_from(v).unwrap_or(i128::MAX)))
    }
    fn visit_f64<E>(self, v: f64) -> Result<Self::Value, E> {
        let Some(n) = Number::from_f64(v) else {
            return Ok(self.wrong("number"));
        };
        if self.ctx.borrow().whole_floats && v.fract() == 0.0 && v.abs() < 1e15 {
            return Ok(self.number(v as i128));
        }
        Ok(match self.ty {
            SeedType::Typed(Type::Double | Type::Any) => Some(Value::Number(n)),
            SeedType::Typed(Type::Quantity) => self.quantity(&n.to_string()),
            SeedType::Typed(Type::Int32 | Type::Int64 | Type::IntOrString) => {
                self.wrong(format!("number {n}"))
            }
            _ => self.wrong("number"),
        })
    }

    fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<Self::Value, E> {
        self.ctx.borrow_mut().charge(v.len())?;
        let SeedType::Typed(ty) = self.ty else {
            return Ok(self.wrong("string"));
        };
        let unparsable = |layout: &str| {
            self.fatal(format!(
                "parsing time {v:?} as {layout:?}: cannot parse {v:?} as \"2006\""
            ))
        };
        Ok(match ty {
            Type::String | Type::Any | Type::IntOrString => Some(v.into()),
            Type::Quantity => self.quantity(v),
            Type::Time if v == "null" => None,
            Type::Time => match crate::time::parse_rfc3339(v) {
                Some(t) => Some(crate::time::format_rfc3339(t).into()),
                None => unparsable("2006-01-02T15:04:05Z07:00"),
            },
            Type::MicroTime => match crate::time::parse_micro(v) {
                Some(t) => Some(crate::time::format_micro(t).into()),
                None => unparsable("2006-01-02T15:04:05.000000Z07:00"),
            },
            Type::Bytes => match base64(v) {
                Ok(bytes) => Some(
                    base64::engine::general_purpose::STANDARD
                        .encode(bytes)
                        .into(),
                ),
                Err(e) => self.fatal(e),
            },
            _ => self.wrong("string"),
        })
    }

    fn visit_bytes<E: serde::de::Error>(self, v: &[u8]) -> Result<Self::Value, E> {
        self.ctx.borrow_mut().charge(v.len())?;
        // Only YAML's !!binary gets here.
        let text = base64::engine::general_purpose::STANDARD.encode(v);
        Ok(match self.ty {
            SeedType::Typed(Type::Bytes | Type::String | Type::Any) => Some(text.into()),
            _ => self.wrong("string"),
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let element: &'static Type = match self.ty {
            SeedType::Typed(Type::List(t)) => t,
            SeedType::Typed(Type::Any) => &Type::Any,
            _ => {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                if let SeedType::Typed(Type::Quantity) = self.ty {
                    return Ok(self.quantity("[]"));
                }
                return Ok(self.wrong("array"));
            }
        };
        let mut list = Vec::with_capacity(seq.size_hint().unwrap_or(0).min(1024));
        loop {
            self.ctx.borrow_mut().enter(Segment::Index(list.len()))?;
            let item = seq.next_element_seed(self.of(element));
            self.ctx.borrow_mut().path.pop();
            match item? {
                Some(_) if list.len() == MAX_ITEMS => {
                    return Err(serde::de::Error::custom(format!(
                        "Too many: a list must have at most {MAX_ITEMS} items"
                    )));
                }
                Some(v) => list.push(v.unwrap_or_else(|| zero(element))),
                None => break,
            }
        }
        Ok(Some(Value::Array(list)))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        match self.ty {
            SeedType::Struct(def) => self.read_struct(def, map),
            SeedType::Typed(Type::Map(t)) => self.read_map(t, map),
            SeedType::Typed(Type::Any | Type::Object) => self.read_free(map),
            SeedType::Custom => self.read_custom(map),
            SeedType::Typed(_) => {
                let mut map = map;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                if let SeedType::Typed(Type::Quantity) = self.ty {
                    return Ok(self.quantity("{}"));
                }
                Ok(self.wrong("object"))
            }
        }
    }
}

impl Seed<'_> {
    fn read_struct<'de, A: MapAccess<'de>>(
        &self,
        def: &'static TypeDef,
        mut map: A,
    ) -> Result<Option<Value>, A::Error> {
        self.ctx.borrow_mut().structs.push(def.short());
        let mut out = Map::new();
        let mut seen = Seen::default();
        while let Some(key) = map.next_key_seed(FieldKey(def))? {
            let (i, field) = match key {
                Ok(i) => (i, &def.fields[i]),
                Err(unknown) => {
                    self.ctx.borrow_mut().strict("unknown", &unknown);
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            if !seen.first(i) {
                self.ctx.borrow_mut().strict("duplicate", field.name);
            }
            self.ctx.borrow_mut().enter(Segment::Field(field.name))?;
            let value = map.next_value_seed(self.of(&field.ty));
            self.ctx.borrow_mut().path.pop();
            match value? {
                Some(v) if !omitted(def, field, &v) => {
                    out.insert(field.name.to_string(), v);
                }
                // Go leaves a field alone when null comes a second time; one that was there stays.
                _ => {}
            }
        }
        let mut ctx = self.ctx.borrow_mut();
        ctx.structs.pop();
        // Go's zero time is null in JSON, where some clients' types have a time and nothing else; this is the same to Go.
        if def.name == CONDITION && !ctx.part && !out.contains_key(TRANSITION) {
            out.insert(TRANSITION.to_string(), ZERO_TIME.into());
        }
        // An object inside of another (a claim in a StatefulSet) is of the kind that its place says, whatever it calls itself.
        if let [gvk] = def.gvks[..]
            && !ctx.path.is_empty()
        {
            let version = match gvk.group {
                "" => gvk.version.to_string(),
                group => format!("{group}/{}", gvk.version),
            };
            for (key, value) in [("apiVersion", version.as_str()), ("kind", gvk.kind)] {
                if let Some(given) = out.get_mut(key) {
                    *given = value.into();
                }
            }
        }
        Ok(Some(Value::Object(out)))
    }

    fn read_map<'de, A: MapAccess<'de>>(
        &self,
        element: &'static Type,
        mut map: A,
    ) -> Result<Option<Value>, A::Error> {
        let mut out = Map::new();
        while let Some(Key(key)) = map.next_key::<Key>()? {
            if out.contains_key(&key) {
                self.ctx.borrow_mut().strict("duplicate", &key);
            }
            self.ctx.borrow_mut().charge(key.len())?;
            self.ctx.borrow_mut().enter(Segment::Key(key))?;
            let value = map.next_value_seed(self.of(element));
            let key = match self.ctx.borrow_mut().path.pop() {
                Some(Segment::Key(k)) => k,
                _ => continue,
            };
            match (value?, element) {
                (Some(v), _) => out.insert(key, v),
                // A time has no zero that a reader would take.
                (None, Type::Time | Type::MicroTime) => out.shift_remove(&key),
                (None, _) => out.insert(key, zero(element)),
            };
        }
        Ok(Some(Value::Object(out)))
    }

    fn read_free<'de, A: MapAccess<'de>>(&self, mut map: A) -> Result<Option<Value>, A::Error> {
        let mut out = Map::new();
        while let Some(Key(key)) = map.next_key::<Key>()? {
            if self.ctx.borrow().free_duplicates && out.contains_key(&key) {
                self.ctx.borrow_mut().strict("duplicate", &key);
            }
            self.ctx.borrow_mut().charge(key.len())?;
            self.ctx.borrow_mut().enter(Segment::Key(key))?;
            let value = map.next_value_seed(self.of(&Type::Any));
            let key = match self.ctx.borrow_mut().path.pop() {
                Some(Segment::Key(k)) => k,
                _ => continue,
            };
            out.insert(key, value?.unwrap_or(Value::Null));
        }
        Ok(Some(Value::Object(out)))
    }

    fn read_custom<'de, A: MapAccess<'de>>(&self, mut map: A) -> Result<Option<Value>, A::Error> {
        static STRING: Type = Type::String;
        let mut out = Map::new();
        while let Some(Key(key)) = map.next_key::<Key>()? {
            if out.contains_key(&key) {
                self.ctx.borrow_mut().strict("duplicate", &key);
            }
            let (segment, seed) = match key.as_str() {
                "metadata" => {
                    let ty = SeedType::Struct(schema::object_meta());
                    (Segment::Field("metadata"), Seed { ty, ctx: self.ctx })
                }
                "apiVersion" => (Segment::Field("apiVersion"), self.of(&STRING)),
                "kind" => (Segment::Field("kind"), self.of(&STRING)),
                other => (Segment::Key(other.to_string()), self.of(&Type::Any)),
            };
            self.ctx.borrow_mut().charge(key.len())?;
            self.ctx.borrow_mut().enter(segment)?;
            let value = map.next_value_seed(seed);
            self.ctx.borrow_mut().path.pop();
            if let Some(v) = value? {
                out.insert(key, v);
            }
        }
        Ok(Some(Value::Object(out)))
    }
}

/// Which fields were there already; definitions with more than 64 fields are few.
#[derive(Default)]
struct Seen {
    low: u64,
    high: Vec<usize>,
}

impl Seen {
    fn first(&mut self, i: usize) -> bool {
        if i < 64 {
            let bit = 1u64 << i;
            let first = self.low & bit == 0;
            self.low |= bit;
            return first;
        }
        let first = !self.high.contains(&i);
        if first {
            self.high.push(i);
        }
        first
    }
}

/// A key of a struct: the field's index, or its name when it is unknown.
struct FieldKey(&'static TypeDef);

impl<'de> DeserializeSeed<'de> for FieldKey {
    type Value = Result<usize, String>;
    fn deserialize<D: Deserializer<'de>>(self, de: D) -> Result<Self::Value, D::Error> {
        de.deserialize_str(self)
    }
}

impl Visitor<'_> for FieldKey {
    type Value = Result<usize, String>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }
    fn visit_str<E>(self, v: &str) -> Result<Self::Value, E> {
        Ok(self
            .0
            .fields
            .binary_search_by(|f| f.name.cmp(v))
            .map_err(|_| v.to_string()))
    }
    fn visit_bool<E>(self, v: bool) -> Result<Self::Value, E> {
        Ok(Err(v.to_string()))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Self::Value, E> {
        Ok(Err(v.to_string()))
    }
    fn visit_u64<E>(self, v: u64) -> Result<Self::Value, E> {
        Ok(Err(v.to_string()))
    }
    fn visit_f64<E>(self, v: f64) -> Result<Self::Value, E> {
        Ok(Err(v.to_string()))
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Err("null".to_string()))
    }
}

/// A key of a map; YAML's other scalars become their text, as sigs.k8s.io/yaml has it.
struct Key(String);

impl<'de> serde::Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        struct V;
        impl Visitor<'_> for V {
            type Value = Key;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key")
            }
            fn visit_str<E>(self, v: &str) -> Result<Key, E> {
                Ok(Key(v.to_string()))
            }
            fn visit_string<E>(self, v: String) -> Result<Key, E> {
                Ok(Key(v))
            }
            fn visit_bool<E>(self, v: bool) -> Result<Key, E> {
                Ok(Key(v.to_string()))
            }
            fn visit_i64<E>(self, v: i64) -> Result<Key, E> {
                Ok(Key(v.to_string()))
            }
            fn visit_u64<E>(self, v: u64) -> Result<Key, E> {
                Ok(Key(v.to_string()))
            }
            fn visit_f64<E>(self, v: f64) -> Result<Key, E> {
                Ok(Key(v.to_string()))
            }
            fn visit_unit<E>(self) -> Result<Key, E> {
                Ok(Key("null".to_string()))
            }
        }
        de.deserialize_str(V)
    }
}

#[cfg(test)]
mod bounds_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn deployment(v: Value, s: Strictness) -> Result<(Value, Vec<String>), String> {
        let e = Expect::gvk("apps", "v1", "Deployment");
        decode(v.to_string().as_bytes(), "application/json", &e, s).map_err(|e| e.message)
    }
    fn raw(text: &str, kind: &str) -> Result<(Value, Vec<String>), String> {
        let e = Expect::gvk("", "v1", kind);
        decode(text.as_bytes(), "application/json", &e, Strictness::Strict).map_err(|e| e.message)
    }

    #[test]
    fn wrong_types_get_gos_text() {
        assert_eq!(
            deployment(json!({"spec": {"replicas": "3"}}), Strictness::Ignore),
            Err("Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32".into())
        );
        assert_eq!(
            deployment(json!({"spec": {"template": {"spec": {"containers": [{"ports": [{"containerPort": 1.5}]}]}}}}), Strictness::Ignore),
            Err("Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal number 1.5 into Go struct field ContainerPort.spec.template.spec.containers.ports.containerPort of type int32".into())
        );
        assert_eq!(
            deployment(json!({"spec": {"template": {"spec": {"containers": {}}}}}), Strictness::Ignore),
            Err("Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container".into())
        );
        assert_eq!(
            deployment(json!({"metadata": {"labels": {"a": 1}}}), Strictness::Ignore),
            Err("Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string".into())
        );
        assert_eq!(
            deployment(
                json!({"spec": {"replicas": 3_000_000_000u64}}),
                Strictness::Ignore
            )
            .unwrap_err()
            .split(": json: ")
            .last(),
            Some(
                "cannot unmarshal number 3000000000 into Go struct field DeploymentSpec.spec.replicas of type int32"
            )
        );
        assert!(
            raw(
                r#"{"spec":{"containers":[{"name":"a","resources":{"limits":{"cpu":"x"}}}]}}"#,
                "Pod"
            )
            .unwrap_err()
            .contains("cannot be handled as a Pod: quantities must match")
        );
        assert!(
            raw(r#"{"data":{"a":"?"}}"#, "Secret")
                .unwrap_err()
                .ends_with("illegal base64 data at input byte 0")
        );
    }

    #[test]
    fn unknown_and_duplicate_fields_are_dropped_warned_of_or_refused() {
        let v = json!({"spec": {"foo": 1, "template": {"spec": {"containers": [{"name": "a", "bar": {}}]}}}});
        let (o, w) = deployment(v.clone(), Strictness::Warn).expect("decoded");
        assert_eq!(
            w,
            [
                "unknown field \"spec.foo\"",
                "unknown field \"spec.template.spec.containers[0].bar\""
            ]
        );
        assert!(o["spec"].get("foo").is_none());
        assert!(
            deployment(v.clone(), Strictness::Ignore)
                .expect("decoded")
                .1
                .is_empty()
        );
        assert!(deployment(v, Strictness::Strict).unwrap_err().ends_with(
            "strict decoding error: unknown field \"spec.foo\", unknown field \"spec.template.spec.containers[0].bar\""
        ));
        assert!(raw(r#"{"metadata":{"name":"a","name":"b"},"data":{"k":"1","k":"2"}}"#, "ConfigMap").unwrap_err().ends_with(
            "strict decoding error: duplicate field \"metadata.name\", duplicate field \"data.k\""
        ));
    }

    #[test]
    fn what_go_would_leave_out_is_left_out() {
        let (o, _) = raw(
            r#"{"metadata":{"name":"a","creationTimestamp":null,"labels":{},"namespace":"","resourceVersion":""},"spec":{"containers":[{"name":"c","env":[],"resources":{"limits":{"cpu":1.5,"memory":"1024Mi"}}}],"nodeSelector":{"a":null},"volumes":[{"name":"e","emptyDir":{}}]}}"#,
            "Pod",
        )
        .expect("decoded");
        assert_eq!(
            o,
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "1500m", "memory": "1Gi"}}}],
                "nodeSelector": {"a": ""}, "volumes": [{"name": "e", "emptyDir": {}}]}})
        );
    }

    #[test]
    fn kinds_that_are_not_expected_are_refused() {
        assert_eq!(
            raw(r#"{"apiVersion":"v1","kind":"Foo"}"#, "Pod").unwrap_err(),
            "Foo in version \"v1\" cannot be handled as a Pod: no kind \"Foo\" is registered for version \"v1\" in scheme \"k8s.io/kubernetes/pkg/api/legacyscheme/scheme.go:30\""
        );
        assert_eq!(
            raw(r#"{"apiVersion":"v1","kind":"Service"}"#, "Pod").unwrap_err(),
            "Service in version \"v1\" cannot be handled as a Pod: converting (v1.Service) to (core.Pod): unknown conversion"
        );
        let e = Expect::gvk("autoscaling", "v2", "HorizontalPodAutoscaler");
        let got = decode(
            br#"{"apiVersion":"autoscaling/v1","kind":"HorizontalPodAutoscaler"}"#,
            "",
            &e,
            Strictness::Warn,
        );
        assert_eq!(
            got.unwrap_err().message,
            "the API version in the data (autoscaling/v1) does not match the expected API version (autoscaling/v2)"
        );
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for (body, start) in [
            (
                "",
                "the object provided is unrecognized (must be of type Pod): couldn't get version/kind; json parse error: ",
            ),
            (
                "{",
                "the object provided is unrecognized (must be of type Pod)",
            ),
            (
                "[]",
                "the object provided is unrecognized (must be of type Pod): couldn't get version/kind; json parse error: json: cannot unmarshal array",
            ),
            ("null", "the object provided is unrecognized"),
            ("{} x", "the object provided is unrecognized"),
        ] {
            let got = raw(body, "Pod").unwrap_err();
            assert!(got.starts_with(start), "{body}: {got}");
        }
        let deep = format!("{}1{}", r#"{"metadata":"#.repeat(5000), "}".repeat(5000));
        assert!(raw(&deep, "Pod").is_err());
        let e = Expect::gvk("", "v1", "Pod");
        assert_eq!(
            decode(b"", "text/plain", &e, Strictness::Warn)
                .unwrap_err()
                .code,
            415
        );
    }

    #[test]
    fn yaml_is_read_as_json_is() {
        let e = Expect::gvk("", "v1", "Service");
        let text = "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n  labels: &l {app: web}\nspec:\n  selector: *l\n  ports:\n  - port: 80\n    targetPort: http\n  - {port: 81, targetPort: 8081}\n";
        let (o, w) =
            decode(text.as_bytes(), "application/yaml", &e, Strictness::Strict).expect("decoded");
        assert!(w.is_empty());
        assert_eq!(
            o["spec"]["ports"],
            json!([{"port": 80, "targetPort": "http"}, {"port": 81, "targetPort": 8081}])
        );
        assert_eq!(o["spec"]["selector"], json!({"app": "web"}));
        let wrong = decode(
            b"metadata:\n  labels:\n    a: 1\n",
            "application/yaml",
            &e,
            Strictness::Warn,
        );
        assert!(
            wrong
                .unwrap_err()
                .message
                .contains("ObjectMeta.metadata.labels of type string")
        );
        let twice = decode(
            b"metadata:\n  name: a\n  name: b\n",
            "application/yaml",
            &e,
            Strictness::Strict,
        );
        assert!(
            twice
                .unwrap_err()
                .message
                .contains("duplicate field \"metadata.name\"")
        );
        assert!(decode(b"a: [", "application/yaml", &e, Strictness::Warn).is_err());
        assert_eq!(
            yaml_documents(
                "---\n# nothing\n---\nmode: 0644\non: \"0644\"\n---\n{\"b\": [0x10, 1.5, 08]}\n"
            ),
            Ok(vec![
                json!({"mode": 420, "on": "0644"}),
                json!({"b": [16, 1.5, 8]})
            ])
        );
        assert!(yaml_documents("a: 1\na: 2\n").is_err());
        assert_eq!(
            yaml_to_value("a: 1\nb: [x, null]\n1: z\n"),
            Ok(json!({"a": 1, "b": ["x", null], "1": "z"}))
        );
    }

    #[test]
    fn kinds_made_at_run_time_keep_their_fields() {
        let e = Expect {
            group: "example.com",
            version: "v1",
            kind: "Boat",
            schema: None,
            also: Also::None,
        };
        let (o, w) = decode(
            br#"{"metadata":{"name":"a","foo":1},"spec":{"x":[1,null]}}"#,
            "",
            &e,
            Strictness::Warn,
        )
        .expect("decoded");
        assert_eq!(o["spec"], json!({"x": [1, null]}));
        assert_eq!(o["apiVersion"], "example.com/v1");
        assert_eq!(w, ["unknown field \"metadata.foo\""]);
    }

    #[test]
    fn times_are_written_canonically() {
        let (o, _) = raw(
            r#"{"metadata":{"name":"a","creationTimestamp":"2024-01-01T02:00:00.5+02:00"}}"#,
            "Pod",
        )
        .expect("decoded");
        assert_eq!(o["metadata"]["creationTimestamp"], "2024-01-01T00:00:00Z");
        assert!(raw(r#"{"metadata":{"creationTimestamp":"x"}}"#, "Pod").unwrap_err().ends_with(
            "parsing time \"x\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"x\" as \"2006\""
        ));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "[a-z0-9é]{0,5}".prop_map(Value::from),
        ];
        let key = prop_oneof![
            Just("metadata"),
            Just("spec"),
            Just("containers"),
            Just("name"),
            Just("ports"),
            Just("limits"),
            Just("resources"),
            Just("status"),
            Just("labels"),
            Just("x"),
            Just("kind"),
            Just("creationTimestamp"),
        ];
        leaf.prop_recursive(6, 64, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((key.clone(), inner), 0..5).prop_map(|v| Value::Object(
                    v.into_iter().map(|(k, v)| (k.to_string(), v)).collect()
                )),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), yaml in any::<bool>()) {
            let e = Expect::gvk("", "v1", "Pod");
            let _ = decode(&bytes, if yaml { "application/yaml" } else { "" }, &e, Strictness::Warn);
        }
        #[test]
        fn decoding_what_was_decoded_changes_nothing(v in any_json()) {
            let e = Expect::gvk("", "v1", "Pod");
            if let Ok((once, _)) = decode(v.to_string().as_bytes(), "", &e, Strictness::Warn) {
                let (twice, warnings) = convert(once.clone(), &e, Strictness::Strict).expect("again");
                prop_assert_eq!(once, twice);
                prop_assert!(warnings.is_empty());
            }
        }
    }
}
