//! Several operators by mistake: one works, the others wait, and who cannot prove that it leads ends.
