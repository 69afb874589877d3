//! The element types that kernels know, under their three names.

/// One type.
#[derive(Debug, PartialEq, Eq)]
pub struct Type {
    /// In a card's `for`, and the variant of the launcher's argument in lower case.
    pub card: &'static str,
    /// In CUDA.
    pub cuda: &'static str,
    /// In Rust, from inside the generated module.
    pub rust: &'static str,
    /// Size of an element.
    pub bytes: usize,
    /// Whether a kernel may take one by value, and how the launcher names the argument then.
    pub by_value: Option<&'static str>,
}

impl Type {
    /// Whether values count something: such a parameter may be the name in a formula.
    pub fn counts(&self) -> bool {
        matches!(self.card, "i32" | "u32" | "i64" | "u64")
    }

    const fn new(
        card: &'static str,
        cuda: &'static str,
        rust: &'static str,
        bytes: usize,
        by_value: Option<&'static str>,
    ) -> Self {
        Self { card, cuda, rust, bytes, by_value }
    }
}

/// All types.
pub static TYPES: [Type; 10] = [
    Type::new("f32", "float", "f32", 4, Some("F32")),
    Type::new("bf16", "bf16", "rt::Bf16", 2, None),
    Type::new("f64", "double", "f64", 8, Some("F64")),
    Type::new("i32", "int", "i32", 4, Some("I32")),
    Type::new("u32", "unsigned", "u32", 4, Some("U32")),
    Type::new("i64", "long long", "i64", 8, Some("I64")),
    Type::new("u64", "unsigned long long", "u64", 8, Some("U64")),
    Type::new("u16", "unsigned short", "u16", 2, None),
    Type::new("u8", "unsigned char", "u8", 1, None),
    Type::new("bool", "bool", "bool", 1, Some("Bool")),
];

/// The type that a card calls `name`.
pub fn by_card(name: &str) -> Option<&'static Type> {
    TYPES.iter().find(|t| t.card == name && t.card != "bool")
}

/// The type that CUDA calls `name`, single spaces between its words.
pub fn by_cuda(name: &str) -> Option<&'static Type> {
    let name = match name {
        "unsigned int" => "unsigned",
        other => other,
    };
    TYPES.iter().find(|t| t.cuda == name)
}
