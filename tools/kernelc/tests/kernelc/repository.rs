//! The repository's own kernels: they compile without a warning, nothing spills, and the resource
//! lock says what they use. `GENEVAR_BLESS_RESOURCES=1` rewrites the lock.

use kernelc::Config;

use crate::support;

fn config(out: &std::path::Path) -> Config {
    let root = support::root();
    Config {
        kernels: root.join("kernels"),
        out: out.to_path_buf(),
        cache: root.join("target/kernel-cache"),
        fetched: support::fetched(),
        archs: kernelc::archs(None).unwrap(),
        runtime: "crate::runtime".to_string(),
        require: false,
        bless: std::env::var("GENEVAR_BLESS_RESOURCES").is_ok_and(|v| v == "1"),
    }
}

#[test]
fn kernels_compile_and_use_what_the_lock_says() {
    if !support::has_nvrtc("kernels_compile_and_use_what_the_lock_says") {
        return;
    }
    let out = tempfile::tempdir().unwrap();
    let report = kernelc::run(&config(out.path())).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(report.warnings, Vec::<String>::new());
    let other_compiler = report.changes.iter().any(|c| c.starts_with("not compared"));
    if other_compiler {
        eprintln!("{}", report.changes.join("\n"));
    } else {
        assert_eq!(report.changes, Vec::<String>::new());
    }
    let spilt = |u: &&kernelc::lock::Usage| u.resources.spill_stores + u.resources.spill_loads > 0;
    assert_eq!(report.usage.iter().find(spilt), None);
}

/// Name and text of the files of a folder below `kernels/` that end in `end`.
fn sources(folder: &str, end: &str) -> Vec<(String, String)> {
    let dir = support::root().join("kernels").join(folder);
    let paths = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path());
    let fits = paths.filter(|p| p.extension().is_some_and(|e| e == end));
    let read = fits.map(|p| {
        let name = format!("kernels/{folder}{}", p.file_name().unwrap().to_str().unwrap());
        (name, std::fs::read_to_string(p).unwrap())
    });
    read.collect()
}

#[test]
fn files_say_what_they_are_and_stay_within_bounds() {
    let all = [sources("", "cu"), sources("lib/", "cuh")].concat();
    assert!(all.len() > 5, "{}", all.len());
    for (name, text) in all {
        assert!(text.starts_with("// "), "{name}: opens without saying what it is");
        assert!(text.lines().count() <= 500, "{name}: over 500 lines");
        for (i, line) in text.lines().enumerate() {
            assert!(line.chars().count() <= 100, "{name}:{}: over 100 columns", i + 1);
            assert!(!line.ends_with(char::is_whitespace), "{name}:{}: trailing space", i + 1);
        }
    }
}

#[test]
fn entries_are_named_after_an_op_and_a_face() {
    for (name, text) in sources("", "cu") {
        for k in kernelc::kernels(&name, &text).unwrap_or_else(|e| panic!("{e}")) {
            let faces = ["_fwd", "_vjp", "_jvp"];
            assert!(faces.iter().any(|f| k.name.ends_with(f)), "{name}:{}: {}", k.line, k.name);
            assert!(k.awaits, "{name}:{}: {} does not call await_previous()", k.line, k.name);
        }
    }
}
