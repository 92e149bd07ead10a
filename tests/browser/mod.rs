//! Headless Chromium, for tests of what a reader of a page sees.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

/// Problems are collected from before the page's own script.
const BEFORE: &str = "<head>\n<script>window.problems = [];\
    addEventListener('error', event => problems.push(String(event.message)));\
    addEventListener('unhandledrejection', event => problems.push(String(event.reason)));\
    addEventListener('securitypolicyviolation', event => problems.push(event.blockedURI));\
    </script>";
const CHECK: &str = include_str!("check.js");

/// Long enough on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

pub struct Browser {
    program: PathBuf,
}

impl Browser {
    /// The browser that `BM3_CHROMIUM` names, else one in `PATH`. Where there is none says so;
    /// panics where `BM3_REQUIRE_CHROMIUM=1` wants one.
    pub fn find() -> Option<Self> {
        let named = std::env::var_os("BM3_CHROMIUM").map(PathBuf::from);
        let in_path = || {
            let folders = std::env::var_os("PATH")?;
            let names = ["chromium", "chromium-browser", "google-chrome"];
            let files = std::env::split_paths(&folders)
                .flat_map(|folder| names.map(|name| folder.join(name)))
                .collect::<Vec<_>>();
            files.into_iter().find(|file| file.is_file())
        };
        let found = named.or_else(in_path).map(|program| Self { program });
        if found.is_none() {
            let why = "there is no Chromium in PATH, and BM3_CHROMIUM names none";
            let required = std::env::var_os("BM3_REQUIRE_CHROMIUM").is_some_and(|v| v == "1");
            assert!(!required, "BM3_REQUIRE_CHROMIUM=1, but {why}");
            println!("SKIPPED: the page was not looked at in a browser: {why}");
        }
        found
    }

    /// Opens a page in a window of this width and returns what `check.js` finds there. With `flags`
    /// as for the browser's command line.
    pub fn look(&self, page: &Path, width: u32, flags: &[&str]) -> Value {
        let text = std::fs::read_to_string(page).unwrap();
        let text = text.replacen("<head>\n", BEFORE, 1);
        let end = text.rfind("</body>").unwrap();
        let text = format!("{}<script>\n{CHECK}</script>\n{}", &text[..end], &text[end..]);
        let folder = tempfile::tempdir().unwrap();
        let checked = folder.path().join("checked.html");
        std::fs::write(&checked, text).unwrap();
        let output = self.run(&checked, width, 900, flags, &["--dump-dom"]);
        let dom = String::from_utf8(output.stdout).unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!said.contains(":CONSOLE"), "{said}");
        let (_, rest) = dom
            .split_once("<pre id=\"outcome\" hidden=\"\">")
            .unwrap_or_else(|| panic!("the check did not end: {said}\n{dom}"));
        let json = rest.split_once("</pre>").unwrap().0;
        let json = json.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
        serde_json::from_str(&json).unwrap()
    }

    /// Keeps a picture of a page.
    pub fn picture(&self, page: &Path, (width, height): (u32, u32), flags: &[&str], out: &Path) {
        let screenshot = format!("--screenshot={}", out.display());
        self.run(page, width, height, flags, &[&screenshot, "--hide-scrollbars"]);
        let png = std::fs::read(out).unwrap();
        assert!(png.starts_with(b"\x89PNG") && png.len() > 20_000, "{} bytes", png.len());
    }

    fn run(
        &self,
        page: &Path,
        width: u32,
        height: u32,
        flags: &[&str],
        action: &[&str],
    ) -> std::process::Output {
        let profile = tempfile::tempdir().unwrap();
        let mut command = Command::new(&self.program);
        command
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"])
            .args(["--no-first-run", "--disable-background-networking", "--disable-sync"])
            .args(["--disable-component-update", "--enable-logging=stderr"])
            // Nothing is to be found, should anything be looked for.
            .arg("--host-resolver-rules=MAP * ~NOTFOUND")
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg(format!("--window-size={width},{height}"))
            .args(flags)
            .args(action)
            .arg(format!("file://{}", page.display()));
        let output = assert_cmd::Command::from_std(command).timeout(PATIENCE).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        output
    }
}
