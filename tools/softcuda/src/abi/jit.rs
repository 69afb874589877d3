//! The options of module loading. There is no compiler to steer, but its logs are filled.

use super::code::{Code, Result};
use super::raw::{Host, In, Out};

/// The caller's buffers for what a load has to say.
#[derive(Default)]
pub(super) struct Jit {
    info: Log,
    error: Log,
}

#[derive(Default)]
struct Log {
    text: Option<Host>,
    room: usize,
    /// Where the caller reads how much was written: the option that gave the room.
    size: Option<(Out<Host>, usize)>,
}

impl Jit {
    /// A load without options.
    pub(super) fn none() -> Self {
        Self::default()
    }

    /// Reads the options; those that steer a compiler are passed over.
    pub(super) fn read(count: u32, options: In<u32>, values: Out<Host>) -> Result<Self> {
        let mut jit = Self::none();
        for index in 0..count as usize {
            let option = options.at(index)?;
            let value = values.at(index)?;
            match option {
                2 => values.set_at(index, Host::from_address(0))?, // wall time: 0.0
                3 => jit.info.text = Some(value),
                4 => jit.info.size = Some((values, index)),
                5 => jit.error.text = Some(value),
                6 => jit.error.size = Some((values, index)),
                0..=34 => {}
                _ => return Err(Code::INVALID_VALUE),
            }
            match option {
                4 => jit.info.room = value.address(),
                6 => jit.error.room = value.address(),
                _ => {}
            }
        }
        jit.info.write("")?;
        jit.error.write("")?;
        Ok(jit)
    }

    /// Writes to the log of what went well.
    pub(super) fn info(&self, text: &str) {
        // A log that cannot be written does not make the load fail.
        let _ = self.info.write(text);
    }

    /// Writes to the log of what went wrong.
    pub(super) fn error(&self, text: &str) {
        let _ = self.error.write(text);
    }
}

impl Log {
    /// Writes what fits, with a closing zero, and tells the caller how much that was.
    fn write(&self, text: &str) -> Result {
        let (Some(buffer), Some(room)) = (self.text, self.room.checked_sub(1)) else {
            return Ok(());
        };
        let mut bytes = text.as_bytes()[..text.len().min(room)].to_vec();
        bytes.push(0);
        buffer.write(&bytes)?;
        match self.size {
            Some((values, index)) => {
                values.set_at(index, Host::from_address(bytes.len() as u64 - 1))
            }
            None => Ok(()),
        }
    }
}
