//! Texts under a constraint are what it asks for, whatever the model says.

#[path = "structured/engine.rs"]
mod engine;
#[path = "structured/hostile.rs"]
mod hostile;
#[path = "structured/schemas.rs"]
mod schemas;
#[path = "structured/support.rs"]
mod support;
#[path = "structured/validator.rs"]
mod validator;
