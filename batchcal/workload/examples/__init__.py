"""Tasks that ship with batchcal, each a real model that trains; read them as templates for one's own."""
