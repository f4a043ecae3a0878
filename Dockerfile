# The program is static and calls nothing, so the image holds nothing else.
# goreleaser lays the binaries out by platform: linux/amd64/appliance, and so on.
FROM scratch
ARG TARGETPLATFORM
COPY ${TARGETPLATFORM}/appliance /appliance
ENTRYPOINT ["/appliance"]
CMD ["start"]
