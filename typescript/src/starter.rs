//! What someone begins with who writes a pipeline in TypeScript.

/// A file of a starter: its name, and its text.
pub type StarterFile = (&'static str, &'static str);

/// A pipeline that runs, the declarations of its globals, and how a compiler or an editor is to read both.
pub const STARTER: [StarterFile; 3] = [
    ("pipeline.ts", include_str!("../starter/pipeline.ts")),
    ("orchestra.d.ts", crate::DECLARATIONS),
    ("tsconfig.json", include_str!("../starter/tsconfig.json")),
];
