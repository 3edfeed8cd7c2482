"""Open models run here: any text-to-video pipeline of diffusers as a teacher."""
