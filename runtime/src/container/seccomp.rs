//! Owns seccomp filters: from a profile (the default table or an OCI JSON file) to the bytes of a BPF program. Filters
//! are compiled in the server and cached as files; a container's process only loads the bytes.

use super::caps;
use super::seccomp_default as table;
use super::seccomp_profile::{Arg, Profile, Rule, Subject};
use crate::sys;
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use std::io::{Read, Seek};

fn action(name: &str, errno: Option<u32>) -> Result<ScmpAction, String> {
    let errno = errno.unwrap_or(libc::EPERM as u32);
    // Greater ones are cut off by the kernel, and zero would look like success.
    if !(1..=4095).contains(&errno) {
        return Err(format!(
            "the seccomp errnoRet {errno} is not between 1 and 4095"
        ));
    }
    Ok(match name {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => ScmpAction::KillThread,
        "SCMP_ACT_KILL_PROCESS" => ScmpAction::KillProcess,
        "SCMP_ACT_TRAP" => ScmpAction::Trap,
        "SCMP_ACT_ERRNO" => ScmpAction::Errno(errno as i32),
        "SCMP_ACT_TRACE" => ScmpAction::Trace(errno as u16),
        "SCMP_ACT_ALLOW" => ScmpAction::Allow,
        "SCMP_ACT_LOG" => ScmpAction::Log,
        other => return Err(format!("the seccomp action {other:?} is not supported")),
    })
}

fn compare(a: &Arg) -> Result<ScmpArgCompare, String> {
    let (op, datum) = match a.op.as_str() {
        "SCMP_CMP_NE" => (ScmpCompareOp::NotEqual, a.value),
        "SCMP_CMP_LT" => (ScmpCompareOp::Less, a.value),
        "SCMP_CMP_LE" => (ScmpCompareOp::LessOrEqual, a.value),
        "SCMP_CMP_EQ" => (ScmpCompareOp::Equal, a.value),
        "SCMP_CMP_GE" => (ScmpCompareOp::GreaterEqual, a.value),
        "SCMP_CMP_GT" => (ScmpCompareOp::Greater, a.value),
        // In the OCI format value is the mask and valueTwo the wanted result.
        "SCMP_CMP_MASKED_EQ" => (ScmpCompareOp::MaskedEqual(a.value), a.value_two),
        other => return Err(format!("the seccomp operator {other:?} is not known")),
    };
    if a.index > 5 {
        return Err(format!("a system call has no argument {}", a.index));
    }
    Ok(ScmpArgCompare::new(a.index, op, datum))
}

fn text(e: libseccomp::error::SeccompError) -> String {
    format!("build the seccomp filter: {e}")
}

/// What the kernel is told for an action.
fn verdict(a: ScmpAction) -> u32 {
    match a {
        ScmpAction::KillProcess => 0x8000_0000,
        ScmpAction::Trap => 0x0003_0000,
        ScmpAction::Errno(e) => ERRNO | e as u32,
        ScmpAction::Trace(v) => 0x7ff0_0000 | u32::from(v),
        ScmpAction::Log => LOG,
        ScmpAction::Allow => ALLOW,
        // KillThread, and Notify, which `action` never gives.
        _ => 0,
    }
}

const ALLOW: u32 = 0x7fff_0000;
const LOG: u32 = 0x7ffc_0000;
const ERRNO: u32 = 0x0005_0000;
/// AUDIT_ARCH_* of this machine, and of its 32-bit form.
const ARCH: u32 = if cfg!(target_arch = "x86_64") {
    0xc000_003e
} else {
    0xc000_00b7
};
const ARCH_32: u32 = if cfg!(target_arch = "x86_64") {
    0x4000_0003
} else {
    0x4000_0028
};

/// The default profile for a process with these bounding capabilities.
pub fn default_profile(bounding: u64) -> Profile {
    let names = |s: &str| s.split_whitespace().map(str::to_string).collect::<Vec<_>>();
    let allow = |names: Vec<String>, args: Vec<Arg>| Rule::new(names, "SCMP_ACT_ALLOW", None, args);
    let arg = |index, value, value_two, op: &str| {
        vec![Arg {
            index,
            value,
            value_two,
            op: op.into(),
        }]
    };
    let mut syscalls = vec![
        allow(names(table::ALLOWED), vec![]),
        allow(names(table::ALLOWED_ARCH), vec![]),
    ];
    for p in table::PERSONALITIES {
        syscalls.push(allow(names("personality"), arg(0, p, 0, "SCMP_CMP_EQ")));
    }
    // vsock reaches the hypervisor, past the pod's network.
    syscalls.push(allow(
        names("socket"),
        arg(0, libc::AF_VSOCK as u64, 0, "SCMP_CMP_NE"),
    ));
    for (cap, calls) in table::ALLOWED_WITH {
        if caps::has(bounding, cap) {
            syscalls.push(allow(names(calls), vec![]));
        }
    }
    if !caps::has(bounding, "SYS_ADMIN") {
        // No new namespaces; clone3 hides its flags behind a pointer, and ENOSYS sends libc to clone.
        let namespaces = (libc::CLONE_NEWNS
            | libc::CLONE_NEWUTS
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUSER
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWCGROUP) as u32;
        syscalls.push(allow(
            names("clone"),
            arg(0, u64::from(namespaces), 0, "SCMP_CMP_MASKED_EQ"),
        ));
        let enosys = Some(libc::ENOSYS as u32);
        syscalls.push(Rule::new(names("clone3"), "SCMP_ACT_ERRNO", enosys, vec![]));
    }
    let architectures: &[&str] = if cfg!(target_arch = "x86_64") {
        &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    } else {
        &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    };
    Profile {
        default_action: "SCMP_ACT_ERRNO".into(),
        default_errno_ret: None,
        architectures: architectures.iter().map(|s| (*s).to_string()).collect(),
        arch_map: vec![],
        flags: vec![],
        syscalls,
    }
}

/// Compiles a resolved profile.
pub fn compile(profile: &Profile) -> Result<Vec<u8>, String> {
    let default = action(&profile.default_action, profile.default_errno_ret)?;
    let mut ctx = ScmpFilterContext::new(default).map_err(text)?;
    // A search tree instead of a list: a tenth of the instructions for each call.
    let _ = ctx.set_ctl_optimize(2);
    for a in &profile.architectures {
        let arch = a
            .parse::<ScmpArch>()
            .map_err(|_| format!("the seccomp architecture {a:?} is not known"))?;
        ctx.add_arch(arch)
            .map_err(|e| format!("the seccomp architecture {a:?}: {e}"))?;
    }
    let mut young = Vec::new();
    for rule in &profile.syscalls {
        let act = action(&rule.action, rule.errno_ret)?;
        if act == default {
            continue;
        }
        let args = rule
            .args
            .iter()
            .map(compare)
            .collect::<Result<Vec<_>, _>>()?;
        for name in &rule.names {
            // Names of other architectures or kernels are skipped, as runc does.
            let Ok(call) = ScmpSyscall::from_name(name) else {
                if let Some((_, nr)) = table::YOUNG.iter().find(|(n, _)| n == name) {
                    if !args.is_empty() {
                        return Err(format!(
                            "the seccomp rule for {name} has args, which this build's libseccomp is too old for"
                        ));
                    }
                    young.push((*nr, verdict(act)));
                }
                continue;
            };
            let indices: std::collections::BTreeSet<u32> =
                rule.args.iter().map(|a| a.index).collect();
            if args.is_empty() {
                ctx.add_rule(act, call).map_err(text)?;
            } else if indices.len() == args.len() {
                ctx.add_rule_conditional(act, call, &args).map_err(text)?;
            } else {
                // libseccomp takes one condition for each argument; several on one are alternatives (runc's rule).
                for one in &args {
                    ctx.add_rule_conditional(act, call, &[*one]).map_err(text)?;
                }
            }
        }
    }
    let memfd = rustix::fs::memfd_create("seccomp", rustix::fs::MemfdFlags::CLOEXEC)
        .map_err(|e| format!("make a memory file: {e}"))?;
    let mut file = std::fs::File::from(memfd);
    ctx.export_bpf(&file).map_err(text)?;
    let lenient = matches!(default, ScmpAction::Allow | ScmpAction::Log);
    let mut program = prefix(&young, !lenient)?;
    file.rewind()
        .and_then(|()| file.read_to_end(&mut program))
        .map_err(|e| format!("read the seccomp filter: {e}"))?;
    Ok(program)
}

/// Instructions before libseccomp's, for calls that it does not know: their verdicts and, where not everything is allowed
/// anyway, ENOSYS for numbers that nobody knew. Everything else falls through. What is refused is refused to 32-bit
/// programs too (the numbers are the same); what is allowed to them is libseccomp's affair.
fn prefix(young: &[(u32, u32)], enosys: bool) -> Result<Vec<u8>, String> {
    const X32: u32 = 0x4000_0000;
    let mut out: Vec<Insn> = Vec::new();
    for (arch, native) in [(ARCH, true), (ARCH_32, false)] {
        let mut body = vec![(LD, 0, 0, 0)];
        for (nr, verdict) in young {
            let lets = matches!(*verdict, ALLOW | LOG);
            if native || !lets {
                body.extend([(JEQ, 0, 1, *nr), (RET, 0, 0, *verdict)]);
            }
            if native && !lets && cfg!(target_arch = "x86_64") {
                body.extend([(JEQ, 0, 1, *nr | X32), (RET, 0, 0, *verdict)]);
            }
        }
        if native && enosys {
            // Not the numbers of x32, which are greater than all.
            body.push((JGE, 2, 0, X32));
            body.extend([
                (JGT, 0, 1, table::LAST_KNOWN),
                (RET, 0, 0, ERRNO | libc::ENOSYS as u32),
            ]);
        }
        if body.len() > 1 {
            let past =
                u8::try_from(body.len()).map_err(|_| "the seccomp profile has too many rules")?;
            out.extend([(LD, 0, 0, 4), (JEQ, 0, past, arch)]);
            out.extend(body);
        }
    }
    Ok(bytes(&out))
}

/// One classic BPF instruction: code, jump if true, jump if false, constant.
type Insn = (u16, u8, u8, u32);
const LD: u16 = 0x20;
const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;
const JSET: u16 = 0x45;
const JA: u16 = 0x05;
const AND: u16 = 0x54;
const RET: u16 = 0x06;

fn bytes(program: &[Insn]) -> Vec<u8> {
    let one = |(code, jt, jf, k): &Insn| {
        let mut b = [0u8; 8];
        b[..2].copy_from_slice(&code.to_ne_bytes());
        b[2] = *jt;
        b[3] = *jf;
        b[4..].copy_from_slice(&k.to_ne_bytes());
        b
    };
    program.iter().flat_map(one).collect()
}

/// What a program says to a system call of this architecture, as the kernel would find it out; None if it holds
/// instructions that libseccomp does not write.
fn run(program: &[u8], nr: u32, args: [u64; 6]) -> Option<u32> {
    let mut data = [0u8; 64];
    data[..4].copy_from_slice(&nr.to_ne_bytes());
    data[4..8].copy_from_slice(&ARCH.to_ne_bytes());
    for (i, a) in args.iter().enumerate() {
        data[16 + 8 * i..24 + 8 * i].copy_from_slice(&a.to_ne_bytes());
    }
    let (mut acc, mut at) = (0u32, 0usize);
    loop {
        let c = program.get(8 * at..8 * at + 8)?;
        let code = u16::from_ne_bytes([c[0], c[1]]);
        let k = u32::from_ne_bytes([c[4], c[5], c[6], c[7]]);
        at += 1;
        let mut branch = |yes: bool| at += usize::from(if yes { c[2] } else { c[3] });
        match code {
            LD => {
                let from = k as usize;
                acc = u32::from_ne_bytes(data.get(from..from + 4)?.try_into().ok()?);
            }
            JEQ => branch(acc == k),
            JGT => branch(acc > k),
            JGE => branch(acc >= k),
            JSET => branch(acc & k != 0),
            AND => acc &= k,
            JA => at += k as usize,
            RET => return Some(k),
            _ => return None,
        }
    }
}

/// True if a process under this filter may do the last steps of `exec::finish`: be born, lead a session, be tied to its
/// parent, take a terminal, run its program, or say why not.
pub fn permits_birth(program: &[u8], tty: bool) -> bool {
    let first = |a| [a, 0, 0, 0, 0, 0];
    let mut calls = vec![
        (libc::SYS_clone, first(sys::SIBLING_FLAGS)),
        (libc::SYS_setsid, first(0)),
        (
            libc::SYS_prctl,
            [
                libc::PR_SET_PDEATHSIG as u64,
                libc::SIGKILL as u64,
                0,
                0,
                0,
                0,
            ],
        ),
        (libc::SYS_execve, first(0)),
        (libc::SYS_write, first(0)),
        (libc::SYS_exit_group, first(0)),
    ];
    if tty {
        calls.push((libc::SYS_ioctl, [0, libc::TIOCSCTTY as u64, 0, 0, 0, 0]));
    }
    calls
        .iter()
        .all(|(nr, args)| matches!(run(program, *nr as u32, *args), Some(ALLOW | LOG)))
}

/// The program of a process that only sleeps and ends: the pod's pid 1.
pub fn idle_program() -> Vec<u8> {
    let calls = [
        libc::SYS_nanosleep,
        libc::SYS_clock_nanosleep,
        libc::SYS_restart_syscall,
        libc::SYS_rt_sigreturn,
        libc::SYS_write,
        libc::SYS_close,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ];
    let mut out: Vec<Insn> = vec![
        (LD, 0, 0, 4),
        (JEQ, 1, 0, ARCH),
        (RET, 0, 0, 0x8000_0000),
        (LD, 0, 0, 0),
    ];
    for c in calls {
        out.extend([(JEQ, 0, 1, c as u32), (RET, 0, 0, ALLOW)]);
    }
    out.push((RET, 0, 0, ERRNO | libc::EPERM as u32));
    bytes(&out)
}

/// The program of the default profile.
pub fn compile_default(bounding: u64) -> Result<Vec<u8>, String> {
    compile(&default_profile(bounding))
}

/// The program of a JSON profile for a container, and the flags to load it with.
pub fn compile_json(json: &[u8], subject: Subject) -> Result<(Vec<u8>, u32), String> {
    let profile = Profile::parse(json)?.resolve(subject)?;
    let flags = profile.filter_flags()?;
    Ok((compile(&profile)?, flags))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the program says to a call with a first argument.
    fn run(program: &[u8], nr: u32, arg0: u64) -> u32 {
        super::run(program, nr, [arg0, 0, 0, 0, 0, 0]).unwrap()
    }

    fn here() -> Subject {
        Subject {
            caps: 0,
            kernel: (6, 1),
        }
    }

    fn errno(e: i32) -> u32 {
        0x0005_0000 | e as u32
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_default_profile_allows_and_refuses_as_containerd_s() {
        let caps = caps::sets(&[], &[], &[], false).unwrap().bounding;
        let p = compile_default(caps).unwrap();
        let cases = [
            ("read", 0, 0, ALLOW),
            ("execve", 59, 0, ALLOW),
            ("mount", 165, 0, errno(1)),
            ("unshare", 272, 0, errno(1)),
            ("clone of a thread", 56, 0x3d0f00, ALLOW),
            (
                "clone with a user namespace",
                56,
                libc::CLONE_NEWUSER as u64,
                errno(1),
            ),
            ("clone3", 435, 0, errno(libc::ENOSYS)),
            ("socket inet", 41, 2, ALLOW),
            ("socket vsock", 41, 40, errno(1)),
            ("personality query", 135, 0xffff_ffff, ALLOW),
            ("personality READ_IMPLIES_EXEC", 135, 0x400000, errno(1)),
            ("chroot with its capability", 161, 0, ALLOW),
            ("keyctl", 250, 0, errno(1)),
            ("io_uring_setup", 425, 0, errno(1)),
            ("fchmodat2", 452, 0, ALLOW),
            ("mseal", 462, 0, ALLOW),
            ("a call of the future", 600, 0, errno(libc::ENOSYS)),
        ];
        for (what, nr, arg, want) in cases {
            assert_eq!(run(&p, nr, arg), want, "{what}");
        }
        assert_eq!(
            run(&compile_default(caps::ALL).unwrap(), 165, 0),
            ALLOW,
            "mount with CAP_SYS_ADMIN"
        );
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn json_profiles_are_read_in_the_oci_format() {
        let (p, flags) = compile_json(
            br#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],"flags":["SECCOMP_FILTER_FLAG_LOG"],"syscalls":[
                {"names":["chmod","nonsense","mseal"],"action":"SCMP_ACT_ERRNO","errnoRet":13},
                {"names":["socket"],"action":"SCMP_ACT_KILL_PROCESS","args":[{"index":0,"value":2,"op":"SCMP_CMP_EQ"},{"index":0,"value":10,"op":"SCMP_CMP_EQ"}]}]}"#,
            here(),
        )
        .unwrap();
        assert_eq!(flags, 2);
        assert_eq!(run(&p, 90, 0), errno(13));
        assert_eq!(run(&p, 462, 0), errno(13), "a call younger than libseccomp");
        assert_eq!(run(&p, 462 | 0x4000_0000, 0), errno(13), "in the x32 form");
        assert_eq!((run(&p, 0, 0), run(&p, 600, 0)), (ALLOW, ALLOW));
        assert_eq!(
            (run(&p, 41, 2), run(&p, 41, 10), run(&p, 41, 1)),
            (0x8000_0000, 0x8000_0000, ALLOW)
        );
    }

    #[test]
    fn what_a_profile_cannot_mean_is_refused_by_name() {
        for (json, want) in [
            (r#"{"defaultAction":"SCMP_ACT_DANCE"}"#, "SCMP_ACT_DANCE"),
            (r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#, "SCMP_ACT_NOTIFY"),
            (
                r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":5000}"#,
                "5000",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_PDP11"]}"#,
                "SCMP_ARCH_PDP11",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_LOG","args":[{"index":0,"value":1,"op":"SCMP_CMP_LIKE"}]}]}"#,
                "SCMP_CMP_LIKE",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_LOG","args":[{"index":6,"value":1,"op":"SCMP_CMP_EQ"}]}]}"#,
                "no argument 6",
            ),
        ] {
            let e = compile_json(json.as_bytes(), here()).unwrap_err();
            assert!(e.contains(want), "{want}: {e}");
        }
    }

    #[test]
    fn a_birth_is_permitted_by_the_default_profile_and_not_without_clone() {
        let caps = caps::sets(&[], &[], &[], false).unwrap().bounding;
        for caps in [caps, 0, caps::ALL] {
            assert!(permits_birth(&compile_default(caps).unwrap(), true));
        }
        let without = |call: &str| {
            let json = format!(
                r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":["{call}"],"action":"SCMP_ACT_ERRNO"}}]}}"#
            );
            compile_json(json.as_bytes(), here()).unwrap().0
        };
        assert!(!permits_birth(&without("clone"), false));
        assert!(!permits_birth(&without("setsid"), false));
        assert!(permits_birth(&without("ioctl"), false) && !permits_birth(&without("ioctl"), true));
        assert!(!permits_birth(&idle_program(), false));
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_pod_s_pid_1_can_sleep_and_nothing_else() {
        let p = idle_program();
        for nr in [35, 230, 1, 231] {
            assert_eq!(run(&p, nr, 0), ALLOW, "{nr}");
        }
        for nr in [0, 2, 59, 56, 101, 165, 272, 308, 435, 600] {
            assert_eq!(run(&p, nr, 0), errno(1), "{nr}");
        }
    }
}
