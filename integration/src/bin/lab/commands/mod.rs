//! One file per command (the four that take only a node share one).

pub mod bench;
pub mod demo;
pub mod down;
pub mod exec;
pub mod internal;
pub mod power;
pub mod status;
pub mod up;
