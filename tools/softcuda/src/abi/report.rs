//! What softcuda says to people: on stderr, and to the file that `SOFTCUDA_REPORT` names.

use std::fs::OpenOptions;
use std::io::Write;

/// Says one thing, each line with the library's name before it.
pub(super) fn say(text: &str) {
    let mut lines = String::new();
    for line in text.lines() {
        lines.push_str("softcuda: ");
        lines.push_str(line);
        lines.push('\n');
    }
    // A report that cannot be written must not become an error of the program that runs on the
    // driver.
    let _ = std::io::stderr().write_all(lines.as_bytes());
    if let Some(path) = std::env::var_os("SOFTCUDA_REPORT") {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let _ = file.and_then(|mut file| file.write_all(lines.as_bytes()));
    }
}
