"""What every form costs and saves on trained models, measured."""
