"""The advantages inside other trainers: `diva_engine.integrations.trl`, `diva_engine.integrations.verl`."""
