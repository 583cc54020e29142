"""Do reasoning and tool use fight over shared weights? Published and controlled measures, gradients by role."""
