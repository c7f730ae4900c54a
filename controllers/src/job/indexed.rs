//! Completion indexes of Indexed jobs: their text form (`1,3-5,7`) and which index a pod has. Pure.

use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeSet;

/// Annotation and label that hold a pod's index.
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// The indexes of a text, those below `completions`. What cannot be read is left out.
pub fn parse(text: &str, completions: u32) -> BTreeSet<u32> {
    let mut all = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(a), Ok(b)) = (first.trim().parse::<u32>(), last.trim().parse::<u32>()) {
            all.extend((a..=b.min(completions.saturating_sub(1))).filter(|i| *i < completions));
        }
    }
    all
}

/// The text of indexes; runs of three and more are written as a range, two as a range as well (upstream).
pub fn format(indexes: &BTreeSet<u32>) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for i in indexes {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *i => *last = *i,
            _ => runs.push((*i, *i)),
        }
    }
    let text = |(a, b): &(u32, u32)| match b - a {
        0 => a.to_string(),
        1 => format!("{a},{b}"),
        _ => format!("{a}-{b}"),
    };
    runs.iter().map(text).collect::<Vec<_>>().join(",")
}

/// The index of a pod.
pub fn of(pod: &Pod) -> Option<u32> {
    pod.metadata.annotations.as_ref()?.get(INDEX)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_written_as_ranges_and_read_back() {
        let all = BTreeSet::from([0, 2, 3, 4, 7, 8]);
        assert_eq!(format(&all), "0,2-4,7,8");
        assert_eq!(parse("0,2-4,7,8", 10), all);
        assert_eq!(parse("0,2-4,7,8", 3), BTreeSet::from([0, 2]));
        assert!(parse("", 10).is_empty() && parse("x,-,4-2", 10).is_empty());
        assert_eq!(parse("0-4294967295", 2).len(), 2);
    }
}
