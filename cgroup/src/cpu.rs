//! Owns the arithmetic of CPU time: thousandths of a core to shares, quota and weight. Pure.

/// cpu.cfs_period_us, in microseconds (upstream's default --cpu-cfs-quota-period).
pub const PERIOD: i64 = 100_000;
/// Fewest shares there are.
pub const MIN_SHARES: i64 = 2;
/// Most shares there are.
pub const MAX_SHARES: i64 = 262_144;
/// The least quota the kernel takes, in microseconds.
const MIN_QUOTA: i64 = 1000;

/// cpu.shares of a request in thousandths of a core (upstream MilliCPUToShares).
pub fn milli_to_shares(milli: i64) -> i64 {
    if milli == 0 {
        // Not 0, which the kernel would read as its own default of a whole core.
        return MIN_SHARES;
    }
    (milli.saturating_mul(1024) / 1000).clamp(MIN_SHARES, MAX_SHARES)
}

/// cpu.cfs_quota_us of a limit in thousandths of a core, for [`PERIOD`]; 0 for none (upstream MilliCPUToQuota).
pub fn milli_to_quota(milli: i64) -> i64 {
    if milli == 0 {
        return 0;
    }
    (milli.saturating_mul(PERIOD) / 1000).max(MIN_QUOTA)
}

/// CPU shares (2..262144) to weight (1..10000), by the curve that opencontainers/cgroups uses since 0.0.5: it meets
/// (2, 1), (1024, 100) and (262144, 10000). 0 for 0, which says nothing.
pub fn weight(shares: i64) -> u64 {
    match shares {
        0 => 0,
        s if s <= MIN_SHARES => 1,
        s if s >= MAX_SHARES => 10_000,
        s => {
            let l = (s as f64).log2();
            let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
            10f64.powf(exponent).ceil() as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights_on_the_documented_curve() {
        let got: Vec<u64> = [0, 2, 102, 1024, 2048, 262_144].map(weight).to_vec();
        assert_eq!(got, [0, 1, 17, 100, 174, 10_000]);
    }

    #[test]
    fn millicores_become_shares_and_quota_within_the_kernels_bounds() {
        assert_eq!(
            [0, 1, 100, 1000, i64::MAX].map(milli_to_shares),
            [2, 2, 102, 1024, 262_144]
        );
        assert_eq!(
            [0, 1, 500, 2000].map(milli_to_quota),
            [0, 1000, 50_000, 200_000]
        );
    }
}
