//! What passed through the proxy.

use std::time::Instant;

use serde_json::Value;

use crate::request::Request;

/// One request of the process.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its number, from 0.
    pub number: usize,
    /// When it came.
    pub at: Instant,
    /// When it was answered or given up; until then as `at`.
    pub ended: Instant,
    /// What it asked for.
    pub request: Request,
    /// Its body; null where there is none or it is no JSON.
    pub body: Value,
    /// The API server's answer, where it was asked and has answered.
    pub code: Option<u16>,
    /// Whether the process was given that answer.
    pub delivered: bool,
    /// Whether it was passed on to the second API server.
    pub second: bool,
}

impl Record {
    /// Whether the API server has done what was asked.
    pub fn committed(&self) -> bool {
        self.code.is_some_and(|code| (200..300).contains(&code))
    }

    /// The uid that a deletion insists on.
    pub fn precondition(&self) -> Option<&str> {
        self.body["preconditions"]["uid"].as_str()
    }
}
