//! Gives the library the name that programs load, whatever its file is called.
//!
//! The loader compares the name asked for with the SONAME of what is already loaded: after this
//! library is loaded by its path, a later `dlopen("libcuda.so")` is answered with it.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so");
}
