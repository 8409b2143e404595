"""What the models of the study read: generated and real texts, questions, and their origin."""
