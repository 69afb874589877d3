//! OpenSlide, for whole-slide images, through whatever `libopenslide` the machine has.
//!
//! The library is looked for at run time: nothing is linked, and a machine without it lacks this
//! one thing. `GENEVAR_OPENSLIDE` names a library to use instead. What is read are 8-bit RGB
//! pixels over white, as a slide looks on the lamp.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_double, c_void};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use libloading::{Library, Symbol};

use crate::error::{Error, Result};

/// The names under which systems have it.
const NAMES: [&str; 6] = [
    "libopenslide.so.1",
    "libopenslide.so.0",
    "libopenslide.so",
    "libopenslide.1.dylib",
    "libopenslide.dylib",
    "libopenslide-1.dll",
];

/// What to do about its absence.
const GET: &str = "install it (apt-get install libopenslide0, brew install openslide)";

/// The most pixels that are read at a time.
const MAX_PIXELS: u64 = 1 << 28;

type Handle = *mut c_void;

/// The functions that are used, with the library that holds them.
struct Api {
    get_version: unsafe extern "C" fn() -> *const c_char,
    open: unsafe extern "C" fn(*const c_char) -> Handle,
    close: unsafe extern "C" fn(Handle),
    get_error: unsafe extern "C" fn(Handle) -> *const c_char,
    level_count: unsafe extern "C" fn(Handle) -> i32,
    level_dimensions: unsafe extern "C" fn(Handle, i32, *mut i64, *mut i64),
    level_downsample: unsafe extern "C" fn(Handle, i32) -> c_double,
    property_value: unsafe extern "C" fn(Handle, *const c_char) -> *const c_char,
    read_region: unsafe extern "C" fn(Handle, *mut u32, i64, i64, i32, i64, i64),
    /// Last, so that the code outlives what points to it.
    _library: Library,
}

impl Api {
    fn load(name: &str) -> std::result::Result<Self, libloading::Error> {
        // SAFETY: loading runs the initialisers of a library that its owner installed, or named in
        // the environment, to be used so.
        let library = unsafe { Library::new(name) }?;
        fn get<T: Copy>(
            library: &Library,
            name: &str,
        ) -> std::result::Result<T, libloading::Error> {
            // SAFETY: the types are those of openslide.h, which have not changed since version 3.3.
            let symbol: Symbol<'_, T> = unsafe { library.get(name.as_bytes()) }?;
            Ok(*symbol)
        }
        Ok(Self {
            get_version: get(&library, "openslide_get_version")?,
            open: get(&library, "openslide_open")?,
            close: get(&library, "openslide_close")?,
            get_error: get(&library, "openslide_get_error")?,
            level_count: get(&library, "openslide_get_level_count")?,
            level_dimensions: get(&library, "openslide_get_level_dimensions")?,
            level_downsample: get(&library, "openslide_get_level_downsample")?,
            property_value: get(&library, "openslide_get_property_value")?,
            read_region: get(&library, "openslide_read_region")?,
            _library: library,
        })
    }
}

/// The library, loaded once, or why it is not.
fn api() -> Result<Arc<Api>> {
    static API: OnceLock<std::result::Result<Arc<Api>, String>> = OnceLock::new();
    let load = || {
        if let Ok(name) = std::env::var("GENEVAR_OPENSLIDE") {
            return Api::load(&name).map(Arc::new).map_err(|e| format!("{name}: {e}"));
        }
        let found = NAMES.iter().find_map(|name| Api::load(name).ok());
        found.map(Arc::new).ok_or_else(|| format!("none of {} is here", NAMES.join(", ")))
    };
    match API.get_or_init(load) {
        Ok(api) => Ok(api.clone()),
        Err(why) => Err(Error::data(format!("OpenSlide cannot be loaded ({why})"), GET)),
    }
}

/// Text that the library returned, which it owns.
///
/// # Safety
/// `text` is null or a C string that lives until this returns.
unsafe fn text(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: not null, and the caller promises the rest.
    Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

/// The library's version.
///
/// # Errors
/// No library.
pub fn version() -> Result<String> {
    let api = api()?;
    // SAFETY: the function takes nothing and returns a static string.
    Ok(unsafe { text((api.get_version)()) }.unwrap_or_else(|| "unknown".into()))
}

/// A level of a slide's pyramid.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    /// Pixels a row.
    pub width: u64,
    /// Rows.
    pub height: u64,
    /// Pixels of level 0 that one of this level covers, along a side.
    pub downsample: f64,
}

/// An open slide.
pub struct Slide {
    api: Arc<Api>,
    handle: NonNull<c_void>,
    path: PathBuf,
    levels: Vec<Level>,
    /// Reading and asking for an error belong together.
    reading: Mutex<()>,
}

// SAFETY: OpenSlide's functions may be called on one handle from several threads at once.
unsafe impl Send for Slide {}
// SAFETY: as above.
unsafe impl Sync for Slide {}

impl Slide {
    /// Opens a slide.
    ///
    /// # Errors
    /// No library; a file that is missing or that OpenSlide does not know.
    pub fn open(path: &Path) -> Result<Self> {
        let api = api()?;
        std::fs::File::open(path).map_err(|e| Error::io("read", path, e))?;
        let unknown = |what: String| {
            Error::file(path, what, "give a slide in a format of OpenSlide, or an image")
        };
        let name = CString::new(path.to_string_lossy().into_owned());
        let name = name.map_err(|_| unknown("its name holds a zero byte".into()))?;
        // SAFETY: a C string that lives through the call.
        let handle = unsafe { (api.open)(name.as_ptr()) };
        let handle = NonNull::new(handle);
        let handle = handle.ok_or_else(|| unknown("not a whole-slide image".into()))?;
        let mut slide = Self {
            api,
            handle,
            path: path.to_path_buf(),
            levels: Vec::new(),
            reading: Mutex::new(()),
        };
        slide.check()?;
        slide.levels = slide.find_levels()?;
        Ok(slide)
    }

    /// The levels, the largest first.
    pub fn levels(&self) -> &[Level] {
        &self.levels
    }

    /// A property by OpenSlide's name for it.
    pub fn property(&self, name: &str) -> Option<String> {
        let name = CString::new(name).ok()?;
        // SAFETY: the handle is open, the name a C string; the value belongs to the handle.
        unsafe { text((self.api.property_value)(self.handle.as_ptr(), name.as_ptr())) }
    }

    /// Pixels `[height, width, 3]` of a level whose top left corner is (`x`, `y`) in pixels of
    /// level 0.
    ///
    /// # Errors
    /// A level that is not there, more pixels than are read at a time, and the library's own.
    pub fn read(&self, level: usize, at: (i64, i64), size: (usize, usize)) -> Result<Vec<u8>> {
        let (width, height) = size;
        let pixels = width as u64 * height as u64;
        if level >= self.levels.len() || pixels > MAX_PIXELS {
            let what = format!("{width}x{height} pixels of level {level}");
            return Err(Error::file(&self.path, what, "read less at a time"));
        }
        let mut argb = vec![0u32; pixels as usize];
        let _one = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the buffer holds width * height pixels, and the level is one of the slide.
        unsafe {
            (self.api.read_region)(
                self.handle.as_ptr(),
                argb.as_mut_ptr(),
                at.0,
                at.1,
                level as i32,
                width as i64,
                height as i64,
            );
        }
        self.check()?;
        Ok(argb.into_iter().flat_map(over_white).collect())
    }

    fn find_levels(&self) -> Result<Vec<Level>> {
        // SAFETY: the handle is open.
        let count = unsafe { (self.api.level_count)(self.handle.as_ptr()) };
        let mut levels = Vec::new();
        for level in 0..count.clamp(0, 64) {
            let (mut width, mut height) = (0i64, 0i64);
            // SAFETY: both point to numbers of this type; the level is below the count.
            let downsample = unsafe {
                (self.api.level_dimensions)(self.handle.as_ptr(), level, &mut width, &mut height);
                (self.api.level_downsample)(self.handle.as_ptr(), level)
            };
            let (w, h) = (u64::try_from(width), u64::try_from(height));
            let (Ok(width), Ok(height)) = (w, h) else { break };
            levels.push(Level { width, height, downsample });
        }
        self.check()?;
        let usable = |l: &Level| l.width > 0 && l.height > 0 && l.downsample >= 1.0;
        match !levels.is_empty() && levels.iter().all(usable) {
            true => Ok(levels),
            false => Err(Error::file(&self.path, "has no levels", "the slide is damaged")),
        }
    }

    /// The library keeps the first error of a handle, after which it reads no more.
    fn check(&self) -> Result<()> {
        // SAFETY: the handle is open; the text belongs to it.
        let error = unsafe { text((self.api.get_error)(self.handle.as_ptr())) };
        match error {
            None => Ok(()),
            Some(error) => {
                let what = format!("OpenSlide cannot read it: {error}");
                Err(Error::file(&self.path, what, "the slide is damaged: fetch it again"))
            }
        }
    }
}

impl Drop for Slide {
    fn drop(&mut self) {
        // SAFETY: opened once, closed once; nothing uses the handle after this.
        unsafe { (self.api.close)(self.handle.as_ptr()) };
    }
}

/// Red, green and blue of a pixel that was multiplied with its opacity, over white.
fn over_white(argb: u32) -> [u8; 3] {
    let [alpha, red, green, blue] = argb.to_be_bytes();
    let white = u8::MAX - alpha;
    [red, green, blue].map(|c| c.saturating_add(white))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_beside_the_glass_is_white() {
        assert_eq!(over_white(0), [255; 3]);
        assert_eq!(over_white(0xFF01_0203), [1, 2, 3]);
        assert_eq!(over_white(0x8040_0000), [191, 127, 127]);
    }
}
