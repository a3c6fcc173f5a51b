//! Properties of whole plans.
