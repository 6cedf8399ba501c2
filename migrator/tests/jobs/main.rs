//! Real programs are moved between places on one machine, over socket pairs. Needs root.

mod calls;
mod faults;
mod files;
mod lab;
mod locks;
mod many;
mod pipes;
mod returns;
mod sandbox;
mod signals;
mod threads;
mod waits;
