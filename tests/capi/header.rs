//! `include/bm3_engine.h`, made of what `src/capi` says.

use std::path::{Path, PathBuf};

use cbindgen::{Bindings, Builder, Config, DocumentationStyle, ExportConfig, Language, Style};

/// Where the header is kept.
pub fn path() -> PathBuf {
    root().join("include/bm3_engine.h")
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The functions, types and constants of the header.
pub fn bindings() -> Bindings {
    let sources = root().join("src/capi");
    let mut builder = Builder::new().with_config(Config {
        header: Some(comment(&std::fs::read_to_string(sources.join("mod.rs")).unwrap())),
        include_guard: Some("BM3_ENGINE_H".to_owned()),
        no_includes: true,
        sys_includes: vec!["stddef.h".to_owned(), "stdint.h".to_owned()],
        language: Language::C,
        cpp_compat: true,
        style: Style::Both,
        usize_is_size_t: true,
        documentation_style: DocumentationStyle::C99,
        line_length: 100,
        tab_width: 4,
        // No function takes the type: C may pass any number for it.
        export: ExportConfig { include: vec!["bm3_split".to_owned()], ..ExportConfig::default() },
        ..Config::default()
    });
    for file in
        ["status", "arguments", "dataset", "recommender", "lists", "evaluation", "cold", "training"]
    {
        builder = builder.with_src(sources.join(file).with_extension("rs"));
    }
    builder.generate().expect("src/capi is read")
}

/// The header's text.
pub fn text(bindings: &Bindings) -> String {
    let mut text = Vec::new();
    bindings.write(&mut text);
    let text = String::from_utf8(text).expect("sources are UTF-8");
    // The comment at the top has said it.
    text.replace("//\n// # Safety\n// The module's rules for pointers.\n", "")
}

/// The documentation of a module as a comment in C.
fn comment(source: &str) -> String {
    let lines = source.lines().map_while(|line| line.strip_prefix("//!"));
    let text: String = lines.map(|line| format!(" *{line}\n")).collect();
    format!(
        "/*\n{text} *\n * Made of the comments of src/capi by `BM3_RECORD_HEADER=1 cargo test --features capi --test capi`.\n */"
    )
}
