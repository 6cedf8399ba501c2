//! What lies behind the pointer arguments of a call.

/// How many bytes lie behind a pointer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Length {
    /// Always as many.
    Bytes(u32),
    /// The value of an argument times this.
    Arg(u8, u32),
    /// The value of an argument; the call may be made with less (read, write).
    ArgCut(u8),
    /// The u32 behind another pointer argument (`socklen_t *`).
    Behind(u8),
    /// An fd_set for as many descriptors as argument 0 says.
    FdSet,
}

/// What a pointer argument points to. A null pointer is passed on as such.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    /// Read by the kernel.
    In(Length),
    /// Written by the kernel.
    Out(Length),
    /// Written by the kernel, result × unit bytes of it.
    OutUpTo(Length, u32),
    /// Both.
    InOut(Length),
    /// An iovec array with the number of elements in that argument, of inputs.
    VectorIn(u8),
    /// The same, of outputs.
    VectorOut(u8),
    /// A msghdr of inputs.
    MessageIn,
    /// A msghdr of outputs.
    MessageOut,
    /// Must be null, else the call is made at home.
    Null,
    /// A string with its final zero byte, read by the kernel.
    Text,
    /// pselect6's pair of signal mask and size; the mask must be null.
    NullMask,
}
