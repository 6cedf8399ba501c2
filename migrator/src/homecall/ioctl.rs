//! ioctl(2) requests that can be made at home, by request code (ioctl_tty(2), ioctl_pipe(2)).

use super::shape::{Length, Shape};

const INT: Length = Length::Bytes(4);
const TERMIOS: Length = Length::Bytes(36);
const TERMIO: Length = Length::Bytes(18);
const TERMIOS2: Length = Length::Bytes(44);
const WINSIZE: Length = Length::Bytes(8);

/// What the third argument of a request is; `None` for requests not known here.
pub(super) fn describe(request: u64) -> Option<Vec<(u8, Shape)>> {
    let shape = match request {
        0x5401 => Shape::Out(TERMIOS),                    // TCGETS
        0x5402..=0x5404 => Shape::In(TERMIOS),            // TCSETS, TCSETSW, TCSETSF
        0x5405 => Shape::Out(TERMIO),                     // TCGETA
        0x5406..=0x5408 => Shape::In(TERMIO),             // TCSETA, TCSETAW, TCSETAF
        0x540f => Shape::Out(INT),                        // TIOCGPGRP
        0x5410 => Shape::In(INT),                         // TIOCSPGRP
        0x5411 => Shape::Out(INT),                        // TIOCOUTQ
        0x5413 => Shape::Out(WINSIZE),                    // TIOCGWINSZ
        0x5414 => Shape::In(WINSIZE),                     // TIOCSWINSZ
        0x5415 => Shape::Out(INT),                        // TIOCMGET
        0x541b => Shape::Out(INT),                        // FIONREAD
        0x5421 => Shape::In(INT),                         // FIONBIO
        0x5429 => Shape::Out(INT),                        // TIOCGSID
        0x5452 => Shape::In(INT),                         // FIOASYNC
        0x8905 => Shape::Out(INT),                        // SIOCATMARK
        0x8004_5430 => Shape::Out(INT),                   // TIOCGPTN
        0x802c_542a => Shape::Out(TERMIOS2),              // TCGETS2
        0x402c_542b..=0x402c_542d => Shape::In(TERMIOS2), // TCSETS2, TCSETSW2, TCSETSF2
        // The argument is a number: TCSBRK, TCXONC, TCFLSH, TCSBRKP.
        0x5409..=0x540b | 0x5425 => return Some(Vec::new()),
        _ => return None,
    };
    Some(vec![(2, shape)])
}
