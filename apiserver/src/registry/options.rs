//! The query parameters of API requests (metav1 ListOptions, CreateOptions, UpdateOptions, PatchOptions, DeleteOptions):
//! reading and checking. Pure.

use crate::http::path::{first_value, query_pairs, truthy};
use serde_json::Value;
use skiff_api::field::FieldError;
use skiff_api::status::Status;

/// What a client may give in the query; bodies of DELETE are merged in by [`Options::merge_delete_body`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Options {
    /// Selector text.
    pub label_selector: String,
    /// Selector text.
    pub field_selector: String,
    /// Items of a page; 0 all.
    pub limit: usize,
    /// Token of the next page.
    pub continue_token: String,
    /// `resourceVersion`; None when absent or empty.
    pub resource_version: Option<String>,
    /// `Exact`, `NotOlderThan`, or empty.
    pub resource_version_match: String,
    /// Seconds after which a watch ends.
    pub timeout_seconds: Option<u64>,
    /// Bookmarks wanted.
    pub allow_watch_bookmarks: bool,
    /// `sendInitialEvents`.
    pub send_initial_events: Option<bool>,
    /// `dryRun=All`
    pub dry_run: bool,
    /// Who manages the fields; not kept yet.
    pub field_manager: String,
    /// `Ignore`, `Warn` or `Strict`; empty is Warn.
    pub field_validation: String,
    /// Of apply.
    pub force: bool,
    /// `pretty`
    pub pretty: Option<bool>,
    /// Table rows' `object`: `None`, `Metadata` (empty), `Object`.
    pub include_object: String,
    /// Deletion grace.
    pub grace_period_seconds: Option<i64>,
    /// `Orphan`, `Background`, `Foreground`.
    pub propagation_policy: Option<String>,
    /// Older form of the policy.
    pub orphan_dependents: Option<bool>,
    /// Delete only this incarnation.
    pub precondition_uid: Option<String>,
    /// Delete only this version.
    pub precondition_resource_version: Option<String>,
}

fn int<T: std::str::FromStr>(v: &str) -> Result<T, Status> {
    v.parse().map_err(|_| {
        Status::bad_request(format!("strconv.ParseInt: parsing {v:?}: invalid syntax"))
    })
}

impl Options {
    /// Reads a query.
    ///
    /// # Errors
    /// 400 for what is no number, 422 for unknown dryRun and fieldValidation values.
    pub fn parse(query: &str) -> Result<Self, Status> {
        let mut o = Self::default();
        if query.is_empty() {
            return Ok(o);
        }
        // The same values that authorization went by.
        o.label_selector = first_value(query, "labelSelector").unwrap_or_default();
        o.field_selector = first_value(query, "fieldSelector").unwrap_or_default();
        for (k, v) in query_pairs(query) {
            if v.is_empty() && k != "dryRun" {
                continue;
            }
            match k.as_str() {
                "limit" => o.limit = usize::try_from(int::<i64>(&v)?).unwrap_or(0),
                "continue" => o.continue_token = v,
                "resourceVersion" => o.resource_version = Some(v),
                "resourceVersionMatch" => o.resource_version_match = v,
                "timeoutSeconds" => {
                    o.timeout_seconds = Some(u64::try_from(int::<i64>(&v)?).unwrap_or(0))
                }
                "allowWatchBookmarks" => o.allow_watch_bookmarks = truthy(&v),
                "sendInitialEvents" => o.send_initial_events = Some(truthy(&v)),
                "dryRun" => {
                    if v != "All" {
                        return Err(invalid_options(&[FieldError::not_supported(
                            "dryRun",
                            v,
                            &["All"],
                        )]));
                    }
                    o.dry_run = true;
                }
                "fieldManager" => o.field_manager = v,
                "fieldValidation" => {
                    if !["Ignore", "Warn", "Strict"].contains(&v.as_str()) {
                        return Err(invalid_options(&[FieldError::not_supported(
                            "fieldValidation",
                            v,
                            &["Ignore", "Warn", "Strict"],
                        )]));
                    }
                    o.field_validation = v;
                }
                "force" => o.force = truthy(&v),
                "pretty" => o.pretty = Some(truthy(&v)),
                "includeObject" => o.include_object = v,
                "gracePeriodSeconds" => o.grace_period_seconds = Some(int(&v)?),
                "propagationPolicy" => o.propagation_policy = Some(v),
                "orphanDependents" => o.orphan_dependents = Some(truthy(&v)),
                _ => {}
            }
        }
        Ok(o)
    }

    /// Takes DeleteOptions from a body that was read as its type; what it does not say, the query says.
    ///
    /// # Errors
    /// 422 for values that are not allowed.
    pub fn merge_delete_body(&mut self, body: &Value) -> Result<(), Status> {
        let given = |field: &str| body.get(field).filter(|v| !v.is_null());
        if let Some(v) = given("gracePeriodSeconds") {
            self.grace_period_seconds = v.as_i64();
        }
        if let Some(v) = given("propagationPolicy") {
            self.propagation_policy = v.as_str().map(String::from);
        }
        if let Some(v) = given("orphanDependents") {
            self.orphan_dependents = v.as_bool();
        }
        let dry = given("dryRun").and_then(Value::as_array);
        for d in dry.into_iter().flatten() {
            if d != "All" {
                return Err(invalid_options(&[FieldError::not_supported(
                    "dryRun",
                    d.clone(),
                    &["All"],
                )]));
            }
            self.dry_run = true;
        }
        if let Some(p) = given("preconditions") {
            let text = |f: &str| p.get(f).and_then(Value::as_str).map(str::to_string);
            self.precondition_uid = text("uid");
            self.precondition_resource_version = text("resourceVersion");
        }
        Ok(())
    }

    /// Checks what DELETE allows.
    ///
    /// # Errors
    /// 422 as upstream's ValidateDeleteOptions.
    pub fn check_delete(&self) -> Result<(), Status> {
        let mut errors = Vec::new();
        if self.propagation_policy.is_some() && self.orphan_dependents.is_some() {
            errors.push(FieldError::invalid(
                "propagationPolicy",
                self.propagation_policy.clone().unwrap_or_default(),
                "orphanDependents and deletionPropagation cannot be both set",
            ));
        }
        if let Some(p) = &self.propagation_policy
            && !["Foreground", "Background", "Orphan"].contains(&p.as_str())
        {
            errors.push(FieldError::not_supported(
                "propagationPolicy",
                p.clone(),
                &["Foreground", "Background", "Orphan"],
            ));
        }
        if let Some(g) = self.grace_period_seconds
            && g < 0
        {
            errors.push(FieldError::invalid(
                "gracePeriodSeconds",
                g,
                "must be greater than or equal to 0",
            ));
        }
        if errors.is_empty() {
            return Ok(());
        }
        let mut s = Status::invalid("meta.k8s.io", "DeleteOptions", "", &errors);
        s.code = 422;
        Err(s)
    }

    /// Checks what LIST and WATCH allow (apimachinery's ValidateListOptions).
    ///
    /// # Errors
    /// 422.
    pub fn check_list(&self, watch: bool) -> Result<(), Status> {
        let mut errors = Vec::new();
        let rvm = self.resource_version_match.as_str();
        if watch {
            match (self.send_initial_events, rvm) {
                (Some(_), "NotOlderThan") | (None, "") => {}
                (Some(_), "") => errors.push(FieldError::forbidden(
                    "resourceVersionMatch",
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                )),
                (Some(_), other) => errors.push(FieldError::not_supported("resourceVersionMatch", other, &["NotOlderThan"])),
                (None, _) => errors.push(FieldError::forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                )),
            }
            if self.send_initial_events == Some(true) && !self.allow_watch_bookmarks {
                // Upstream lets it pass; the initial-events-end bookmark is then never sent. Nothing to refuse.
            }
        } else {
            if self.send_initial_events.is_some() {
                errors.push(FieldError::forbidden(
                    "sendInitialEvents",
                    "sendInitialEvents is forbidden for list",
                ));
            }
            if !rvm.is_empty() {
                let rv = self.resource_version.as_deref().unwrap_or("");
                if rv.is_empty() {
                    errors.push(FieldError::forbidden(
                        "resourceVersionMatch",
                        "resourceVersionMatch is forbidden unless resourceVersion is provided",
                    ));
                }
                if !self.continue_token.is_empty() {
                    errors.push(FieldError::forbidden(
                        "resourceVersionMatch",
                        "resourceVersionMatch is forbidden when continue is provided",
                    ));
                }
                if rvm != "Exact" && rvm != "NotOlderThan" {
                    errors.push(FieldError::not_supported(
                        "resourceVersionMatch",
                        rvm,
                        &["Exact", "NotOlderThan", ""],
                    ));
                }
                if rvm == "Exact" && rv == "0" {
                    errors.push(FieldError::forbidden(
                        "resourceVersionMatch",
                        "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                    ));
                }
            }
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(Status::invalid("meta.k8s.io", "ListOptions", "", &errors))
        }
    }
}

fn invalid_options(errors: &[FieldError]) -> Status {
    Status::invalid("meta.k8s.io", "Options", "", errors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_that_are_none_are_refused() {
        assert_eq!(Options::parse("limit=x").map_err(|e| e.code), Err(400));
        assert_eq!(
            Options::parse("limit=5&continue=&labelSelector=a%3Db")
                .map(|o| (o.limit, o.label_selector)),
            Ok((5, "a=b".into()))
        );
    }

    #[test]
    fn delete_options_come_from_the_body() {
        let mut o = Options::default();
        let body = json!({"kind": "DeleteOptions", "gracePeriodSeconds": 0, "preconditions": {"uid": "u"}, "dryRun": ["All"]});
        assert_eq!(o.merge_delete_body(&body), Ok(()));
        assert_eq!(
            (
                o.grace_period_seconds,
                o.precondition_uid.as_deref(),
                o.dry_run
            ),
            (Some(0), Some("u"), true)
        );
        o.propagation_policy = Some("Sideways".into());
        assert_eq!(o.check_delete().map_err(|e| e.code), Err(422));
    }

    #[test]
    fn match_without_a_version_is_refused() {
        let o = Options::parse("resourceVersionMatch=Exact").unwrap_or_default();
        assert_eq!(o.check_list(false).map_err(|e| e.code), Err(422));
        let o = Options::parse("resourceVersionMatch=NotOlderThan&sendInitialEvents=true")
            .unwrap_or_default();
        assert_eq!(o.check_list(true), Ok(()));
    }
}
