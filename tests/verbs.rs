//! The layouts of the verbs interface against the header that Debian's libibverbs-dev installs.

use std::path::Path;
use std::process::Command;

use tbshard::transport::verbs::layout;

const HEADER: &str = "/usr/include/infiniband/verbs.h";

#[test]
fn layouts_are_those_of_the_header() {
    if !Path::new(HEADER).exists() {
        println!("skipped: {HEADER} is not there (apt install libibverbs-dev)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (source, probe) = (dir.path().join("probe.c"), dir.path().join("probe"));
    let ours = layout();
    assert!(ours.len() > 100);
    let prints: String = ours.iter().map(|(c, _)| format!("  printf(\"%zu\\n\", (size_t)({c}));\n")).collect();
    let text = format!(
        "#include <infiniband/verbs.h>\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {{\n{prints}  return 0;\n}}\n"
    );
    std::fs::write(&source, text).unwrap();
    let compiled = Command::new("cc").arg(&source).arg("-o").arg(&probe).output().unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let output = Command::new(&probe).output().unwrap();
    let theirs: Vec<usize> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(theirs.len(), ours.len());
    for ((name, ours), theirs) in ours.iter().zip(theirs) {
        assert_eq!(*ours, theirs, "{name}");
    }
}
